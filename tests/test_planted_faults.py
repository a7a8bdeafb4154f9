"""Faults planted in exported files: bisect finds each, and names the tensor, the key or the token."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeft.console import silent_log
from edgeft.errors import ParityFailed, UsageError
from edgeft.export.gguf import quantize_gguf, write_gguf
from edgeft.export.gguf.architectures import Architecture, Config, llama
from edgeft.parity.bisect import bisect
from edgeft.parity.finding import Finding
from edgeft.parity.forms import Prompt
from tests.lively import make_lively_llama
from tests.parity_models import plant, rewrite
from tests.tiny_models import make_model

WORDS = ("turn on the kitchen light", "what is the weather like tomorrow?", "{'room': \"kitchen\"} 0123 789")
PROMPTS = [Prompt(({"role": "user", "content": text},)) for text in WORDS]
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Fault:
    """A change of an honest file (or, `planted`, of the export), and what must be said about it."""

    kind: str
    name: str
    said: str
    model: str = "llama"
    planted: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def other_rows(tensor: np.ndarray) -> np.ndarray:
    return np.roll(tensor, 5, axis=0)


K, V = "blk.1.attn_k.weight", "blk.1.attn_v.weight"
K_SOURCE, V_SOURCE = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "kv")
FAULTS = {
    "unpermuted q/k": Fault(
        "tensor", "blk.0.attn_q.weight", "rows in the order of model.layers.0.self_attn.q_proj.weight; llama.cpp wants "
        "them in another", planted="unpermuted q/k",
    ),
    "wrong rope theta": Fault(
        "key", "llama.rope.freq_base", "is 500000 in the file; by config.json 10000", planted="wrong rope theta"
    ),
    "dropped bias": Fault(
        "tensor", "blk.0.attn_v.bias", "missing from the file; it is made from model.layers.0.self_attn.v_proj.bias",
        planted="dropped bias",
    ),
    "wrong EOS": Fault(
        "key", "tokenizer.ggml.eos_token_id", "is 1 ('<|im_start|>'); the tokenizer says 2 ('<|im_end|>')",
        planted="wrong EOS",
    ),
    "doubled BOS in the template": Fault(
        "template", "tokenizer.chat_template", "in line 1: '{{ bos_token ", planted="doubled BOS in the template"
    ),
    "wrong norm epsilon": Fault(
        "key", "llama.attention.layer_norm_rms_epsilon", "is 1e-05 in the file; by config.json 1e-06",
        keys={"llama.attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "swapped k/v": Fault(
        "tensor", K, f"rows are not those of {K_SOURCE} but of {V_SOURCE}", names={K: V, V: K}
    ),
    "KV heads": Fault(
        "key", "llama.attention.head_count_kv", "is 4 in the file; by config.json 2",
        keys={"llama.attention.head_count_kv": 4},
    ),
    "head_dim": Fault(
        "key", "llama.attention.key_length", "is 16 in the file; by config.json 32",
        keys={"llama.attention.key_length": 16, "llama.attention.value_length": 16},
    ),
    "sliding window": Fault(
        "key", "gemma2.attention.sliding_window", "is 4096 in the file; by config.json 24", model="gemma2",
        keys={"gemma2.attention.sliding_window": 4096},
    ),
    "soft-cap dropped": Fault(
        "key", "gemma2.attn_logit_softcapping", "is missing from the file; by config.json it is 3", model="gemma2",
        keys={"gemma2.attn_logit_softcapping": None},
    ),
    "embedding scale": Fault(
        "tensor", "token_embd.weight", "8 times what it should be; it is made from model.embed_tokens.weight",
        model="gemma2", tensors={"token_embd.weight": lambda tensor: tensor * 8},
    ),
    "added-token id off by one": Fault(
        "token", "<|im_start|>", "token 1 is '<|im_end|>' in the file, '<|im_start|>' in the tokenizer; "
        "'<|im_start|>' has the id 2 in the file",
        keys={TOKENS: lambda tokens: [tokens[0], tokens[2], tokens[1], *tokens[3:]]},
    ),
    "padded vocabulary": Fault(
        "token", "[PAD384]", "384 tokens for an embedding of 400 rows: 384 ('[PAD384]') is missing from the file",
        model="padded", keys={TOKENS: lambda tokens: tokens[:384]},
    ),
    "pre-tokenizer swapped": Fault(
        "key", "tokenizer.ggml.pre", "is 'llama-bpe'; the tokenizer says '",
        keys={"tokenizer.ggml.pre": "llama-bpe"}
    ),
    "template whitespace": Fault(
        "template", "tokenizer.chat_template", "differs in line 1",
        keys={"tokenizer.chat_template": lambda text: text.replace("assistant\\n", "assistant \\n")},
    ),
}  # fmt: skip
OTHERS = {
    "other architecture": Fault("key", "general.architecture", "is 'llama'; config.json's model is", model="gemma2"),
    "rows in another order": Fault(
        "tensor", "blk.0.ffn_up.weight", "in another order: row 0 of the file is row 123",
        tensors={"blk.0.ffn_up.weight": other_rows},
    ),
    "one row of the embedding": Fault(
        "tensor", "token_embd.weight", "1 of 384 rows are not those of model.embed_tokens.weight: row 70 (token 'd')",
        tensors={"token_embd.weight": lambda tensor: np.where(np.arange(len(tensor))[:, None] == 70, 0.5, tensor)},
    ),
    "1 of a norm's 1 + weight missing": Fault(
        "tensor", "blk.0.attn_norm.weight", "off by -1 everywhere", model="gemma2",
        tensors={"blk.0.attn_norm.weight": lambda tensor: tensor - 1},
    ),
    "not finite": Fault(
        "tensor", "blk.0.ffn_up.weight", "not finite", tensors={"blk.0.ffn_up.weight": lambda tensor: tensor * np.nan}
    ),
    "shape": Fault(
        "tensor", "blk.0.ffn_up.weight", "has the shape (127, 64) in the file, (128, 64) by config.json",
        tensors={"blk.0.ffn_up.weight": lambda tensor: tensor[:127]},
    ),
    "tensor too many": Fault(
        "tensor", "blk.1.attn_k.weight", "missing", names={"blk.1.attn_k.weight": "blk.1.attn_w.weight"}
    ),
    "merge": Fault(
        "token", "Ġt", "merge 0 is 'e d' in the file; the tokenizer has 'Ġ t'",
        keys={"tokenizer.ggml.merges": lambda merges: ["e d", *merges[1:]]},
    ),
    "token type": Fault(
        "token", "<|im_end|>", "token 2 ('<|im_end|>') is normal in the file; by the tokenizer it is control",
        keys={"tokenizer.ggml.token_type": lambda types: [*types[:2], 1, *types[3:]]},
    ),
    "no template": Fault(
        "template", "tokenizer.chat_template", "the model folder has a chat template, the file has none",
        keys={"tokenizer.chat_template": None},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """name -> (folder, honest F32 file)"""
    root = tmp_path_factory.mktemp("models")
    folders = {
        "llama": make_lively_llama(root / "llama"),
        "padded": make_model(root / "padded", "llama", vocab_size=400),
        "gemma2": make_model(root / "gemma2", "gemma2"),
    }
    files = {name: root / f"{name}.gguf" for name in folders}
    for name, folder in folders.items():
        write_gguf(folder, files[name], ftype="F32", name="tiny", provenance={}, log=silent_log())
    return {name: (folders[name], files[name]) for name in folders}


def found(folder: Path, file: Path, **options: Any) -> Finding | None:
    return bisect(folder, file, PROMPTS, silent_log(), n_threads=1, **options)


@pytest.mark.parametrize("fault", [*FAULTS, *OTHERS])
def test_a_fault_is_found_and_named(fault: str, models: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    wanted = (FAULTS | OTHERS)[fault]
    folder, honest = models[wanted.model]
    file = tmp_path / "faulty.gguf"
    if fault == "other architecture":
        file = models["llama"][1]
    elif wanted.planted:
        plant(wanted.planted, folder, file, "F32")
    else:
        rewrite(honest, file, keys=wanted.keys, tensors=wanted.tensors, names=wanted.names)
    finding = found(folder, file)
    assert finding is not None
    assert (finding.kind, finding.name) == (wanted.kind, wanted.name), finding.message
    assert wanted.said in finding.message
    assert finding.to_json() == {"kind": wanted.kind, "name": wanted.name, "message": finding.message}


def test_honest_files_have_no_fault(models: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    for folder, file in models.values():
        assert found(folder, file) is None
    for ftype in ("F16", "BF16"):
        assert found(models["llama"][0], plant("none", models["llama"][0], tmp_path / "honest.gguf", ftype)) is None


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "qwen3_moe"])
def test_honest_files_of_other_layouts_have_no_fault(kind: str, tmp_path: Path) -> None:
    folder, file = make_model(tmp_path / "model", kind), tmp_path / "model.gguf"
    write_gguf(folder, file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    assert found(folder, file) is None


@pytest.mark.parametrize("ftype", ["Q8_0", "Q4_K_M", "IQ4_XS", "Q2_K"])
def test_rounding_is_no_fault_and_hides_none(ftype: str, tmp_path: Path) -> None:
    """Of 256 columns, so that every type is used; llama.cpp itself quantizes."""
    folder = make_lively_llama(tmp_path / "wide", hidden_size=256, intermediate_size=256)
    plant("none", folder, tmp_path / "honest.gguf", "F32")
    quantize_gguf(tmp_path / "honest.gguf", tmp_path / "q.gguf", ftype, n_threads=1)
    assert found(folder, tmp_path / "q.gguf") is None
    rewrite(tmp_path / "honest.gguf", tmp_path / "bad.gguf", names={K: V, V: K})
    quantize_gguf(tmp_path / "bad.gguf", tmp_path / "q.gguf", ftype, n_threads=1)
    finding = found(folder, tmp_path / "q.gguf")
    assert finding is not None
    assert finding.message == f"{K}: rows are not those of {K_SOURCE} but of {V_SOURCE}"


def believing(**changes: Any) -> Architecture:
    """The llama mapping with other hyper-parameters: bisect takes it for right, so keys and weights agree."""

    def hyperparameters(config: Config) -> dict[str, Any]:
        return llama.hyperparameters(config) | changes

    return dataclasses.replace(llama.ARCHITECTURE, hyperparameters=hyperparameters)


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({"rope.freq_base": 10.0}, "blk.0.attn_output.weight", "the result of its attention leaves"),
        (
            {"attention.layer_norm_rms_epsilon": 0.5},
            "blk.0.attn_q.weight",
            "layer 0: the input of its attention leaves",
        ),
    ],
)
def test_a_mapping_that_is_wrong_shows_in_a_layer(
    changes: dict[str, Any], name: str, said: str, tmp_path: Path
) -> None:
    folder = make_lively_llama(tmp_path / "llama")
    architecture = believing(**changes)
    out = tmp_path / "wrong.gguf"
    write_gguf(folder, out, ftype="F32", name="wrong", provenance={}, log=silent_log(), architecture=architecture)
    finding = found(folder, out, architecture=architecture)
    assert finding is not None
    assert (finding.kind, finding.name) == ("layer", name)
    assert said in finding.message


def test_the_command_names_the_fault(models: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    folder, honest = models["llama"]
    bad = rewrite(honest, tmp_path / "bad.gguf", names={K: V, V: K})
    command = import_module("edgeft.cli.parity").command("parity", "Compare.")
    result = CliRunner().invoke(command, [str(folder), str(honest), str(bad), "--bisect"])
    assert isinstance(result.exception, ParityFailed)
    assert str(result.exception) == f"not the model of {folder}: bad.gguf"
    honest_line, bad_line = result.stdout.splitlines()
    assert honest_line == "llama.gguf: nothing found: it is the model of the folder"
    assert bad_line == f"bad.gguf: {K}: rows are not those of {K_SOURCE} but of {V_SOURCE}"
    result = CliRunner().invoke(command, [str(folder), str(bad), "--bisect", "--json"])
    assert json.loads(result.stdout)["bad.gguf"]["name"] == K
    recipe = CliRunner().invoke(command, ["recipe.yaml", "--bisect"])
    assert (recipe.exit_code, "--bisect wants the model folder" in recipe.output) == (2, True)
    assert isinstance(CliRunner().invoke(command, [str(folder), "--bisect"]).exception, UsageError)
