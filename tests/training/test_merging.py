"""Merging: the formula in float64, files as safetensors writes them, tied heads, NF4 bases, memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from edgeft.errors import ModelError
from edgeft.sections import Lora
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.merging import cast_model, merge_adapter
from edgeft.training.models import load_model
from edgeft.training.streaming import Entry, TensorFile, write_tensors
from tests.tiny import make_tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


def disturb(model: Any, only: str = "") -> Any:
    """As after training: a fresh lora_B is zero, and a zero update would prove nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and only in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def make_adapter(base: Path, folder: Path, **lora: Any) -> Path:
    save_adapter(disturb(attach_lora(load_model(base), Lora(**{"r": 4, "lora_alpha": 12, **lora}))), folder, "it")
    return folder


def merged_by(base: Path, adapter: Path, out: Path, dtype: str = "float32", nf4: str | None = None) -> dict[str, Any]:
    out.mkdir()
    merge_adapter(base, adapter, out, dtype, nf4)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, False), (False, True), (True, True)])
def test_merge_equals_the_formula_in_float64(base: Path, tmp_path: Path, rslora: bool, dora: bool) -> None:
    """W + s B A; with DoRA m (W + s B A) / ‖W + s B A‖ by rows (Liu et al. 2024, equation 5)."""
    adapter = make_adapter(base, tmp_path / "adapter", use_rslora=rslora, use_dora=dora)
    merged = merged_by(base, adapter, tmp_path / "merged")
    low_rank = {n: t.double() for n, t in load_file(adapter / "adapter_model.safetensors").items()}
    scale = 12 / (4**0.5 if rslora else 4)
    changed = 0
    for name, weight in load_file(base / "model.safetensors").items():
        key = "base_model.model." + name.removesuffix(".weight")
        expected = weight.double()
        if f"{key}.lora_A.weight" in low_rank:
            expected += scale * (low_rank[f"{key}.lora_B.weight"] @ low_rank[f"{key}.lora_A.weight"])
            if dora:
                expected *= (low_rank[f"{key}.lora_magnitude_vector"] / expected.norm(dim=1))[:, None]
            changed += 1
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6, msg=name)
    assert changed == 14  # seven linear layers in each of two blocks


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("nf4", [None, "float32"])
def test_conv1d_is_merged_transposed(tmp_path: Path, dora: bool, nf4: str | None) -> None:
    """GPT-2, against peft; on NF4 against the quantized model itself."""
    base = tmp_path / "gpt2"
    tokenizer = tiny_tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=1, n_head=2, n_positions=64)
    config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = 0.0
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    kwargs = {} if nf4 is None else {"quantization_config": nf4_config(nf4)}
    trained = disturb(attach_lora(load_model(base, **kwargs), Lora(r=4, use_dora=dora)))
    save_adapter(trained, tmp_path / "adapter", "it")
    merged = merged_by(base, tmp_path / "adapter", tmp_path / "merged", nf4=nf4)
    if nf4 is None:
        expected = trained.merge_and_unload().state_dict()
        for name in merged:
            torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
        return
    ids = torch.arange(3, 30)[None]
    plain = load_model(base)
    plain.load_state_dict(merged, strict=False)
    torch.testing.assert_close(plain.train()(ids).logits, trained.train()(ids).logits, rtol=1e-4, atol=1e-4)


def test_ranks_and_scales_of_single_layers_are_read_as_peft_stores_them(base: Path, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        alpha_pattern={"v_proj": 5, r".*layers\.0.*down_proj": 3},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    model = disturb(get_peft_model(load_model(base), config))
    model.save_pretrained(tmp_path / "adapter")
    merged = merged_by(base, tmp_path / "adapter", tmp_path / "merged")
    expected = model.merge_and_unload().state_dict()
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_nf4_base_is_the_one_training_saw_bit_for_bit(base: Path, tmp_path: Path, dtype: str) -> None:
    held = load_model(base, dtype, quantization_config=nf4_config(dtype))
    weights = {
        name: dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in held.named_modules()
        if type(module).__name__ == "Linear4bit"
    }
    save_adapter(attach_lora(held, Lora(r=2)), tmp_path / "adapter", "it")  # B is zero: nothing is added
    merged = merged_by(base, tmp_path / "adapter", tmp_path / "merged", dtype, nf4=dtype)
    assert len(weights) == 14
    for name, weight in weights.items():
        assert torch.equal(merged[f"{name}.weight"], weight), name
    plain = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(merged["model.embed_tokens.weight"], plain.to(merged["model.embed_tokens.weight"].dtype))


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("more_tokens", [0, 5])
def test_a_head_trained_apart_from_its_embedding_is_untied(
    base: Path, tmp_path: Path, saved: list[str], more_tokens: int
) -> None:
    """As peft does it when nobody asks it to keep them together; new tokens make both longer."""
    model = load_model(base)
    model.resize_token_embeddings(model.config.vocab_size + more_tokens, mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=list(saved), task_type="CAUSAL_LM")
    model = disturb(get_peft_model(model, config))
    rows = model.config.vocab_size
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=bool(more_tokens))
    (tmp_path / "merged").mkdir()
    changes = merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert changes == {"tie_word_embeddings": False} | ({"vocab_size": rows} if more_tokens else {})
    expected = model.merge_and_unload().state_dict()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        torch.testing.assert_close(merged[name], expected[name])


def test_new_tokens_in_the_head_alone_are_refused(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"different numbers of tokens.*modules_to_save: \[embed_tokens, lm_head\]"):
        merge_adapter(base, tmp_path / "adapter", tmp_path, "float32")


def test_new_tokens_of_a_tied_model_stay_tied(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    model.resize_token_embeddings(model.config.vocab_size + 3, mean_resizing=False)
    trained = disturb(attach_lora(model, Lora(r=2, modules_to_save=["embed_tokens", "lm_head"])), "modules_to_save")
    save_adapter(trained, tmp_path / "adapter", "it")
    (tmp_path / "merged").mkdir()
    changes = merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert changes == {"vocab_size": model.config.vocab_size}
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert "lm_head.weight" not in merged
    assert torch.equal(merged["model.embed_tokens.weight"], trained.get_base_model().lm_head.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": "all"}, "trained biases"),
        ({"trainable_token_indices": [1, 2]}, "with trainable_token_indices cannot be merged"),
        ({"use_dora": True}, "incomplete for"),
    ],
)
def test_adapters_that_cannot_be_folded_are_refused(
    base: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = make_adapter(base, tmp_path / "adapter") / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=message):
        merge_adapter(base, tmp_path / "adapter", tmp_path, "float32")


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", modules_to_save=["norm"])
    for name, config, message in (
        ("wider", {"hidden_size": 128}, "belongs to another base"),
        ("shallower", {"num_hidden_layers": 1}, r"has no model\.layers\.1\..*belongs to another base"),
    ):
        other = make_tiny_llama(tmp_path / name, **config)
        with pytest.raises(ModelError, match=message):
            merge_adapter(other, adapter, tmp_path, "float32")


def test_shards_stay_shards(base: Path, tmp_path: Path) -> None:
    model = load_model(base)
    sharded = tmp_path / "sharded"
    model.save_pretrained(sharded, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((base / name).read_bytes())
    adapter = make_adapter(base, tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    (tmp_path / "cast").mkdir()
    merge_adapter(sharded, adapter, tmp_path / "out", "bfloat16")
    cast_model(sharded, tmp_path / "cast", "bfloat16")
    names = sorted(path.name for path in sharded.glob("*.safetensors"))
    for folder in ("out", "cast"):
        assert sorted(path.name for path in (tmp_path / folder).glob("*.safetensors")) == names
        index = json.loads((tmp_path / folder / "model.safetensors.index.json").read_text())
        theirs = json.loads((sharded / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == theirs["weight_map"]
        assert index["metadata"]["total_size"] * 2 == theirs["metadata"]["total_size"]
    expected = PeftModel.from_pretrained(load_model(base), str(adapter)).merge_and_unload().state_dict()
    for name in names:
        for key, weight in load_file(tmp_path / "out" / name).items():
            torch.testing.assert_close(weight, expected[key].bfloat16(), rtol=1e-2, atol=1e-3)
    (sharded / names[0]).unlink()
    with pytest.raises(ModelError, match=f"{names[0]} is missing"):
        cast_model(sharded, tmp_path / "cast", "bfloat16")


def test_files_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = {
        "half": torch.arange(6, dtype=torch.float16).reshape(3, 2),
        "b": torch.arange(3, dtype=torch.int64),
        "a": torch.arange(2, dtype=torch.int64),
        "wide": torch.arange(8, dtype=torch.float32).reshape(2, 2, 2),
        "brain": torch.ones(3, dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "number": torch.tensor(7.0),
        "nothing": torch.empty(0, 4),
    }
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    entries = {name: Entry(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ours", entries, lambda name: [tensors[name]])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    file = TensorFile(tmp_path / "ours")
    for name, tensor in tensors.items():
        assert torch.equal(file.tensor(name), tensor)
    assert torch.equal(file.rows("half", 1, 3), tensors["half"][1:3])


def test_a_file_that_could_not_be_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 bytes where the header says 8"):
        write_tensors(tmp_path / "out", {"a": Entry(torch.float32, (2,))}, lambda _: [torch.zeros(1)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_merge_holds_less_than_one_shard(tmp_path: Path) -> None:
    """Peak memory of a process that merges 300 MB in 3 shards, over that of the same imports alone."""
    base = tmp_path / "base"
    make_tiny_llama(
        base,
        hidden_size=1024,
        intermediate_size=6144,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    adapter = make_adapter(base, tmp_path / "adapter", r=16)
    model = load_model(base)
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="100MB")
    shards = [path.stat().st_size for path in base.glob("*.safetensors")]
    assert len(shards) >= 3
    assert sum(shards) > 250e6
    (tmp_path / "merged").mkdir()
    code = (
        "import resource, sys; from pathlib import Path; from edgeft.training.merging import merge_adapter\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "merge_adapter(*map(Path, sys.argv[1:4]), 'bfloat16')\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, base, adapter, tmp_path / "merged"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < max(shards)
