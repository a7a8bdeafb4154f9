"""GGUF files of Llama models. Oracles: transformers' logits, torch's weights, gguf-py's reader."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeft.errors import EdgeftError, ModelError, UsageError
from edgeft.runtime import load
from tests.lively import make_lively_llama
from tests.tiny import make_tiny_llama
from tests.tiny_models import make_model

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no biases": {"attention_bias": False, "mlp_bias": False},
    "tied embeddings": {"tie_word_embeddings": True},
    "as many key heads as heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "head width of hidden_size / heads": {"head_dim": None},
    "theta of Llama 3": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear scaling": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "Llama 3 scaling": {"rope_parameters": LLAMA3_ROPE},
    "large epsilon": {"rms_norm_eps": 0.1},
}


def reader_value(reader: gguf.GGUFReader, key: str) -> Any:
    return reader.fields[key].contents()


def torch_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def assert_same_logits(folder: Path, file: Path) -> None:
    """Top-1 equal everywhere and mean KL below 1e-6 nats over 200 random tokens, in float64."""
    import torch

    from edgeft.parity.numbers import kl_divergence

    with load(file, n_threads=1) as model:
        ids = np.random.default_rng(0).integers(3, model.n_vocab, 200).tolist()
        ours = model.score(ids)
    with torch.inference_mode():
        theirs = torch_model(folder)(torch.tensor([ids])).logits[0].numpy()
    assert kl_divergence(theirs, ours).mean() < 1e-6
    margin = np.sort(theirs)[:, -1] - np.sort(theirs)[:, -2]
    clear = margin > 2 * np.abs(theirs - ours).max()
    assert clear.mean() > 0.9
    assert (theirs.argmax(-1) == ours.argmax(-1))[clear].all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_transformers_logits(variant: str, tmp_path: Path, write: Any) -> None:
    folder = make_lively_llama(tmp_path / "model", **VARIANTS[variant])
    assert_same_logits(folder, write(folder, tmp_path / "model.gguf"))


def test_older_spelling_of_rope_scaling(model_folder: Path, tmp_path: Path, write: Any) -> None:
    """Files written by transformers 4 have `rope_theta` and `rope_scaling` at the top."""
    old, new = tmp_path / "old", make_lively_llama(tmp_path / "new", rope_parameters=LLAMA3_ROPE)
    shutil.copytree(new, old)
    config = json.loads((old / "config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (old / "config.json").write_text(json.dumps(config))
    assert write(old, tmp_path / "a.gguf").read_bytes() == write(new, tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(
    ("dtype", "ftype", "expected"),
    [
        ("float32", "F32", "F32"),
        ("float32", "F16", "F16"),
        ("float32", "BF16", "BF16"),
        ("bfloat16", "BF16", "BF16"),
        ("bfloat16", "F32", "F32"),
        ("float16", "F16", "F16"),
    ],
)
def test_weights_are_torchs_weights(tmp_path: Path, write: Any, dtype: str, ftype: str, expected: str) -> None:
    """Every matrix is torch's own conversion of the checkpoint; vectors are float32."""
    import torch

    folder = make_tiny_llama(tmp_path / "model")
    torch_model(folder).to(getattr(torch, dtype)).save_pretrained(folder)
    target = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[ftype]
    state = torch_model(folder).state_dict()
    reader = gguf.GGUFReader(write(folder, tmp_path / "model.gguf", ftype))
    found = {tensor.name: tensor for tensor in reader.tensors}
    for name, source in {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
        "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
    }.items():
        assert found[name].tensor_type.name == expected
        ours = gguf.dequantize(found[name].data, found[name].tensor_type)
        assert np.array_equal(ours, state[source].to(target).float().numpy())
    for name, tensor in found.items():
        assert (tensor.tensor_type.name == "F32") == (len(tensor.shape) == 1 or ftype == "F32"), name


def test_sharded_checkpoints(model_folder: Path, tmp_path: Path, write: Any) -> None:
    torch_model(model_folder).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_folder / name, tmp_path / "shards" / name)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    whole, shards = write(model_folder, tmp_path / "a.gguf"), write(tmp_path / "shards", tmp_path / "b.gguf")
    assert whole.read_bytes() == shards.read_bytes()


def test_metadata(model_folder: Path, tmp_path: Path, write: Any) -> None:
    provenance = {"recipe_sha256": "ab" * 32, "data_sha256": "cd" * 32, "base": "x", "version": "0.1.0"}
    reader = gguf.GGUFReader(write(model_folder, tmp_path / "a.gguf", "F16", name="n", provenance=provenance))
    expected = {
        "general.architecture": "llama",
        "general.name": "n",
        "general.file_type": 1,
        "general.quantization_version": 2,
        **{f"edgeft.{key}": value for key, value in provenance.items()},
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": (model_folder / "chat_template.jinja").read_text(),
    }
    assert {key: reader_value(reader, key) for key in expected} == expected
    assert reader_value(reader, "llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)


def test_the_same_arguments_give_the_same_bytes(model_folder: Path, tmp_path: Path, write: Any) -> None:
    provenance = {"b": "1", "a": "2"}
    first = write(model_folder, tmp_path / "a.gguf", "F16", provenance=provenance)
    again = write(model_folder, tmp_path / "b.gguf", "F16", provenance=dict(reversed(provenance.items())))
    assert first.read_bytes() == again.read_bytes()


def test_rows_without_a_token_are_named(model_folder: Path, tmp_path: Path, write: Any) -> None:
    """Embeddings are often padded to a round number of rows."""
    from transformers import AutoTokenizer

    n_tokens = len(AutoTokenizer.from_pretrained(model_folder))
    folder = make_tiny_llama(tmp_path / "model", vocab_size=n_tokens)
    model = torch_model(folder)
    model.resize_token_embeddings(n_tokens + 5)
    model.save_pretrained(folder)
    file = write(folder, tmp_path / "model.gguf")
    assert_same_logits(folder, file)
    reader = gguf.GGUFReader(file)
    assert reader_value(reader, "tokenizer.ggml.tokens")[-1] == f"[PAD{n_tokens + 4}]"
    assert reader_value(reader, "tokenizer.ggml.token_type")[-5:] == [gguf.TokenType.UNUSED] * 5


def edited(folder: Path, name: str, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def large_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e5
    save_file(tensors, folder / "model.safetensors")


def same_name(folder: Path) -> None:
    """Three more rows than tokens, and a token called as the exporter calls the last of them."""
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = np.concatenate([tensors[name], tensors[name][:3]])
    save_file(tensors, folder / "model.safetensors")
    n_rows = len(tensors["lm_head.weight"])
    edited(folder, "config.json", vocab_size=n_rows)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": n_rows - 3, "content": f"[PAD{n_rows - 1}]"})
    (folder / "tokenizer.json").write_text(json.dumps(content))


BAD: dict[str, tuple[Any, str]] = {
    "another architecture": (
        lambda f: edited(f, "config.json", model_type="rwkv", architectures=["RwkvForCausalLM"]),
        r"'rwkv' \(RwkvForCausalLM\) cannot be exported to GGUF; supported: .*llama.* docs/architectures\.md",
    ),
    "no architecture": (lambda f: edited(f, "config.json", model_type=None), "None .* cannot be exported"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), r"config\.json: not a JSON object"),
    "config without a key": (lambda f: edited(f, "config.json", hidden_size=None), "has no 'hidden_size'"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"tokenizer\.json is missing; save the tokenizer"),
    "tokenizer without tokens": (
        lambda f: (f / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}'),
        "it has no tokens",
    ),
    "tokenizer of another kind of file": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a tokenizer"),
    "more tokens than rows": (
        lambda f: edited(f, "config.json", vocab_size=100),
        r"embed_tokens\.weight has shape|has no row in the embedding",
    ),
    "a token named as a row without one": (same_name, "two tokens (have the same text|would be)"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "only pickles": (pickle_only, r"pytorch_model\.bin\). Opening a pickle can run code .* convert it: python -c"),
    "weights cut short": (truncate, r"model\.safetensors: cut short"),
    "weights cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]),
        r"model\.safetensors: damaged or cut short \(50 bytes\)",
    ),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "missing tensor": (without_tensor, r"tensor model\.layers\.1\.mlp\.up_proj\.weight is missing"),
    "tensors with no place": (
        lambda f: edited(f, "config.json", num_hidden_layers=1),
        r"16 tensors have no place in a llama file: model\.layers\.1\.",
    ),
    "biases the config denies": (lambda f: edited(f, "config.json", attention_bias=False), "have no place"),
    "other shape than the config's": (
        lambda f: edited(f, "config.json", intermediate_size=64),
        r"gate_proj\.weight has shape \(128, 64\); config\.json says \(64, 64\)",
    ),
    "unknown rope": (
        lambda f: edited(f, "config.json", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4}),
        "rope_type 'dynamic' is not supported for this model_type; only default, linear, yarn, llama3",
    ),
    "another activation": (lambda f: edited(f, "config.json", hidden_act="gelu"), "hidden_act 'gelu'"),
    "missing shard": (
        lambda f: (
            (f / "model.safetensors").unlink(),  # it goes before an index
            (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        ),
        r"the shard b\.safetensors is missing",
    ),
    "no end token": (
        lambda f: (
            edited(f, "tokenizer_config.json", eos_token=None),
            edited(f, "generation_config.json", eos_token_id=None),
            edited(f, "config.json", eos_token_id=None),
            (f / "chat_template.jinja").unlink(),
        ),
        "no token ends an answer",
    ),
    "broken template": (lambda f: (f / "chat_template.jinja").write_text("{% if %}"), "not valid Jinja"),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_folders_are_refused(fault: str, model_folder: Path, tmp_path: Path, write: Any) -> None:
    break_it, said = BAD[fault]
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    break_it(folder)
    with pytest.raises(ModelError, match=said):
        write(folder, tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == [folder]


def test_numbered_positions_are_no_weights(tmp_path: Path, write: Any) -> None:
    """BERT checkpoints of older versions hold them, as 64-bit integers."""
    folder = make_model(tmp_path / "model", "bert")
    plain = write(folder, tmp_path / "plain.gguf").read_bytes()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "embeddings.position_ids": np.arange(256)[None]}, folder / "model.safetensors")
    assert write(folder, tmp_path / "numbered.gguf").read_bytes() == plain


def test_weights_beyond_half_precision(model_folder: Path, tmp_path: Path, write: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    large_weight(folder)
    with pytest.raises(ModelError, match=r"up_proj\.weight holds 100000, too large for F16; export BF16"):
        write(folder, tmp_path / "model.gguf", "F16")
    write(folder, tmp_path / "model.gguf", "BF16")


def test_other_misuse(model_folder: Path, tmp_path: Path, write: Any) -> None:
    with pytest.raises(UsageError, match="unknown ftype Q9; known: F32, F16, BF16"):
        write(model_folder, tmp_path / "model.gguf", "Q9")
    with pytest.raises(UsageError, match="IQ1_S needs an importance matrix"):
        write(make_tiny_llama(tmp_path / "wide", hidden_size=256), tmp_path / "model.gguf", "IQ1_S")
    with pytest.raises(ModelError, match="no such model folder"):
        write(tmp_path / "nowhere", tmp_path / "model.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeftError, match="a part of the path is a file"):
        write(model_folder, tmp_path / "file" / "model.gguf")
