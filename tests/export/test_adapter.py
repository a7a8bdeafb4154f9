"""LoRA adapters folded in while a file is written, and as files of their own. Oracles: peft, and llama.cpp's LoRA."""

import ctypes
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from edgeft.artifact import sha256_file
from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.export.adapter import read_adapter
from edgeft.export.folder import open_checkpoint
from edgeft.export.gguf.lora import write_lora_gguf
from edgeft.export.gguf.stream import Weights
from edgeft.runtime import load
from tests.lively import make_lively_llama

ADAPTERS: dict[str, dict[str, Any]] = {
    "all linear layers": {"target_modules": "all-linear"},
    "rsLoRA": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    "a head trained whole": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
}


def adapted(model: Any, folder: Path, **config: Any) -> Any:
    """`model` with a random LoRA adapter, which is saved in `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model

    fields = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"]} | config
    torch.manual_seed(3)
    peft_model = get_peft_model(model, LoraConfig(**fields)).eval()
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(folder)
    return peft_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively_llama(tmp_path_factory.mktemp("base"), tie_word_embeddings=False)


@pytest.fixture
def adapt(base: Path, tmp_path: Path) -> Callable[..., Any]:
    from transformers import AutoModelForCausalLM

    return lambda **config: adapted(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter", **config)


@pytest.mark.parametrize("kind", ADAPTERS)
def test_folded_in_as_peft_merges(kind: str, base: Path, adapt: Any, tmp_path: Path) -> None:
    merged = adapt(**ADAPTERS[kind]).merge_and_unload().state_dict()
    checkpoint = open_checkpoint(base)
    weights = Weights(checkpoint, read_adapter(tmp_path / "adapter", checkpoint.tensors, tied=False))
    changed = 0
    for name in checkpoint.tensors:
        ours = weights.whole(name)
        np.testing.assert_allclose(ours, merged[name].numpy(), rtol=0, atol=2e-6, err_msg=name)
        changed += not np.array_equal(ours, checkpoint.read(name))
    assert changed >= 3


def test_folded_into_transposed_layers(tmp_path: Path) -> None:
    """GPT-2's Conv1D holds (in, out); peft says fan_in_fan_out, and its checkpoints leave a beginning out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    model.save_pretrained(tmp_path / "base")
    merged = adapted(model, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    state = merged.merge_and_unload().state_dict()
    checkpoint = open_checkpoint(tmp_path / "base")
    weights = Weights(checkpoint, read_adapter(tmp_path / "adapter", checkpoint.tensors, tied=True))
    for name in checkpoint.tensors:
        np.testing.assert_allclose(weights.whole(name), state[name].numpy(), rtol=0, atol=2e-6, err_msg=name)


def test_a_file_with_the_adapter_is_the_merged_models(base: Path, adapt: Any, tmp_path: Path, write: Any) -> None:
    merged = adapt().merge_and_unload()
    shutil.copytree(base, tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged")
    ours, theirs = (
        {t.name: t.data for t in gguf.GGUFReader(path).tensors}
        for path in (
            write(base, tmp_path / "a.gguf", adapter=tmp_path / "adapter"),
            write(tmp_path / "merged", tmp_path / "b.gguf"),
        )
    )
    for name, data in theirs.items():
        np.testing.assert_allclose(ours[name], data, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["all linear layers", "rsLoRA", "patterns", "embedding"])
def test_llama_cpp_runs_the_lora_file_as_peft(kind: str, base: Path, adapt: Any, tmp_path: Path, write: Any) -> None:
    import torch

    peft_model = adapt(**ADAPTERS[kind])
    lora, ids = tmp_path / "lora.gguf", list(range(5, 45))
    write_lora_gguf(base, tmp_path / "adapter", lora, name="l", provenance={"version": "1"}, log=silent_log())
    keys = gguf.GGUFReader(lora).fields
    assert keys["edgeft.base_sha256"].contents() == sha256_file(base / "model.safetensors")
    assert keys["general.type"].contents() == "adapter"
    with torch.inference_mode():
        theirs = peft_model(torch.tensor([ids])).logits[0].numpy()
        with peft_model.disable_adapter():
            without = peft_model(torch.tensor([ids])).logits[0].numpy()
    ours = scores_with_lora(write(base, tmp_path / "base.gguf"), lora, ids)
    assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs - without).max()


def scores_with_lora(file: Path, lora: Path, ids: list[int]) -> np.ndarray:
    """Logits (T, V) of the model in `file` with the adapter in `lora`, by llama.cpp."""
    with load(file, n_threads=1) as model:
        handle = llama_cpp.llama_adapter_lora_init(model._model, os.fsencode(lora))
        assert handle
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(handle)
        llama_cpp.llama_set_adapters_lora(model._context, adapters, 1, (ctypes.c_float * 1)(1.0))
        return model.score(ids)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, "an adapter with use_dora cannot be exported; fold it into the base first"),
    "another method": ({"peft_type": "LOHA"}, "an adapter of type LOHA; only LORA"),
    "biases": ({"bias": "lora_only"}, r"trained biases \(bias: lora_only\)"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_kinds_are_refused_by_name(kind: str, base: Path, adapt: Any, tmp_path: Path) -> None:
    adapt()
    changes, message = REFUSED[kind]
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=message):
        read_adapter(tmp_path / "adapter", open_checkpoint(base).tensors, tied=False)


def test_adapters_that_do_not_fit(base: Path, adapt: Any, tmp_path: Path) -> None:
    adapt(target_modules=["q_proj", "embed_tokens"])
    tensors = open_checkpoint(base).tensors
    with pytest.raises(
        ModelError, match=r"changes model\.embed_tokens\.weight, which the base uses as embedding and head"
    ):
        read_adapter(tmp_path / "adapter", tensors, tied=True)
    adapt()
    other = make_lively_llama(tmp_path / "other", hidden_size=96, tie_word_embeddings=False)
    with pytest.raises(ModelError, match="it belongs to another base"):
        read_adapter(tmp_path / "adapter", open_checkpoint(other).tensors, tied=False)
    with pytest.raises(ModelError, match=r"has no tensor model\.layers"):
        read_adapter(tmp_path / "adapter", {"lm_head.weight": tensors["lm_head.weight"]}, tied=False)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        read_adapter(base, tensors, tied=False)


def test_modules_trained_whole_have_no_place_in_a_lora_file(base: Path, adapt: Any, tmp_path: Path) -> None:
    adapt(modules_to_save=["lm_head"])
    with pytest.raises(ModelError, match=r"holds lm_head\.weight whole"):
        write_lora_gguf(base, tmp_path / "adapter", tmp_path / "lora.gguf", name="l", provenance={}, log=silent_log())


MOVED = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa, fast": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "loftq": {"init_lora_weights": "loftq"},
}
RANKS = {
    "another rank": {"r": 2},
    "a pattern that is not the tensors'": {"rank_pattern": {"q_proj": 2}},
    "a pattern left out": {"r": 8, "rank_pattern": {"k_proj": 4}},
}


@pytest.mark.parametrize("changes", [*MOVED.values(), *RANKS.values()], ids=[*MOVED, *RANKS])
def test_what_peft_would_put_on_another_base_is_refused(
    changes: dict[str, Any], base: Path, adapt: Callable[..., Any], tmp_path: Path
) -> None:
    """An initialization that peft repeats on the base when it loads the adapter; a rank that is not the tensors'."""
    adapt(target_modules=["q_proj", "k_proj"])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | changes))
    said = "peft changes the base" if "init_lora_weights" in changes else r"has rank 4, adapter_config\.json says"
    with pytest.raises(ModelError, match=said):
        read_adapter(tmp_path / "adapter", open_checkpoint(base).tensors, tied=False)


@pytest.mark.parametrize("start", [True, False, "gaussian", "orthogonal", "eva"])
def test_a_start_that_leaves_the_base_alone_is_taken(
    start: Any, base: Path, adapt: Callable[..., Any], tmp_path: Path
) -> None:
    adapt()
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": start}))
    assert read_adapter(tmp_path / "adapter", open_checkpoint(base).tensors, tied=False).low_rank
