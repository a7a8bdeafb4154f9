"""Which type each tensor gets; the oracle is llama.cpp's own quantizer on files of the same names and shapes."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgeft.errors import UsageError
from edgeft.export.gguf.tensor_types import FTYPES, choose_types, fallbacks, tensor_types
from edgeft.quant.ggml import GgmlType
from tests.export.quantizing import llama_quantize, llama_types, types_of

Shapes = list[tuple[str, tuple[int, ...]]]


def decoder(
    n_layers: int, n_cols: int = 256, *, output: bool = False, fused: bool = False, n_experts: int = 0
) -> Shapes:
    """Names and shapes of a decoder whose matrices have two rows; every name the rules know is there."""
    shapes: Shapes = [("token_embd.weight", (2, n_cols)), ("output_norm.weight", (n_cols,))]
    shapes += [("output.weight", (2, n_cols))] if output else []
    attention = ("attn_qkv",) if fused else ("attn_q", "attn_k", "attn_v")
    for layer in range(n_layers):
        ours = f"blk.{layer}"
        shapes += [(f"{ours}.{part}.weight", (2, n_cols)) for part in (*attention, "attn_output")]
        shapes += [(f"{ours}.attn_q.bias", (2,)), (f"{ours}.attn_norm.weight", (n_cols,))]
        experts = (n_experts,) if n_experts else ()
        ending = "_exps" if n_experts else ""
        shapes += [(f"{ours}.ffn_{p}{ending}.weight", (*experts, 2, n_cols)) for p in ("gate", "up", "down")]
        shapes += [(f"{ours}.ffn_gate_inp.weight", (n_experts, n_cols))] if n_experts else []
    return shapes


def keys(architecture: str, n_layers: int, heads: int = 4, kv_heads: int = 4, n_experts: int = 0) -> dict[str, Any]:
    """The hyper-parameters llama.cpp asks for before it quantizes."""
    values: dict[str, Any] = {
        "context_length": 128, "embedding_length": 256, "block_count": n_layers, "feed_forward_length": 256,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5, "vocab_size": 2,
    }  # fmt: skip
    if n_experts:
        values |= {"expert_count": n_experts, "expert_used_count": 2}
    return {f"{architecture}.{key}": value for key, value in values.items()}


MODELS: dict[str, tuple[Shapes, dict[str, Any]]] = {
    "tied": (decoder(9), keys("llama", 9)),
    "grouped queries and a head": (decoder(17, output=True), keys("llama", 17, heads=8, kv_heads=2)),
    "qwen2, biases, rows of 160": (decoder(8, 160), keys("qwen2", 8, heads=14, kv_heads=2)),
    "rows of 72": (decoder(4, 72, output=True), keys("llama", 4)),
    "eight experts": (decoder(9, n_experts=8, output=True), keys("llama", 9, n_experts=8)),
    "four experts": (decoder(9, n_experts=4), keys("qwen3moe", 9, n_experts=4)),
    "fused attention": (decoder(9, fused=True), keys("gpt2", 9)),
    "as many layers as a 70B": (decoder(80, output=True), keys("llama", 80, heads=8, kv_heads=4)),
    "falcon": (decoder(17, fused=True, output=True), keys("falcon", 17)),
}


def write_source(path: Path, shapes: Shapes, hyperparameters: dict[str, Any]) -> Path:
    """A float32 GGUF file of random tensors."""
    writer = gguf.GGUFWriter(path, next(iter(hyperparameters)).partition(".")[0])
    for key, value in hyperparameters.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
    random = np.random.default_rng(0)
    for name, shape in shapes:
        writer.add_tensor(name, random.standard_normal(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("importance", [False, True], ids=["blindly", "with importance"])
@pytest.mark.parametrize("model", MODELS)
def test_every_ftype_as_llama_quantize(model: str, importance: bool, tmp_path: Path) -> None:
    shapes, hyperparameters = MODELS[model]
    source = write_source(tmp_path / "f32.gguf", shapes, hyperparameters)
    ones = {name: np.ones((*shape[:-2], shape[-1]), np.float32) for name, shape in shapes if len(shape) > 1}
    for ftype in FTYPES:
        expected, needs_importance = llama_types(source, ftype, ones if importance else None)
        if needs_importance:
            with pytest.raises(UsageError, match=f"{ftype} needs an importance matrix"):
                tensor_types(ftype, shapes, hyperparameters, importance=False)
        else:
            ours = tensor_types(ftype, shapes, hyperparameters, importance=importance)
            assert {name: kind.name for name, kind in ours.items()} == expected, ftype


def test_one_row_stays_in_the_type_of_the_source(tmp_path: Path) -> None:
    """llama.cpp counts a matrix of one row as a vector."""
    shapes = [*decoder(1), ("cls.output.weight", (1, 256))]
    source = write_source(tmp_path / "f32.gguf", shapes, keys("llama", 1))
    assert types_of(llama_quantize(source, tmp_path / "q.gguf", "Q8_0"))["cls.output.weight"] == "F32"
    for kind in (GgmlType.F32, GgmlType.BF16):
        chosen = choose_types("Q8_0", shapes, keys("llama", 1), importance=False, source=kind)
        assert chosen["cls.output.weight"].kind == kind


def test_types_replace_the_rules_and_fall_back_as_they_do() -> None:
    shapes = decoder(2, 160)
    types = {"blk.0.attn_q.weight": GgmlType.Q6_K, "blk.1.ffn_up.weight": GgmlType.BF16}
    chosen = choose_types("Q4_0", shapes, keys("llama", 2), importance=False, types=types)
    assert chosen["blk.0.attn_q.weight"].kind == GgmlType.Q8_0
    assert chosen["blk.1.ffn_up.weight"].kind == GgmlType.BF16
    assert chosen["blk.1.attn_q.weight"].kind == GgmlType.Q4_0
    assert fallbacks(chosen)["blk.0.attn_q.weight"] == "q6_K -> q8_0"


def test_misuse() -> None:
    shapes, hyperparameters = decoder(1), keys("llama", 1)
    with pytest.raises(UsageError, match="unknown ftype Q9; known: F32, F16"):
        tensor_types("Q9", shapes, hyperparameters, importance=False)
    with pytest.raises(UsageError, match=r"the model has no tensor blk.7"):
        choose_types("Q8_0", shapes, hyperparameters, importance=False, types={"blk.7.x": GgmlType.Q8_0})
    with pytest.raises(UsageError, match=r"does not quantize output_norm.weight"):
        choose_types("Q8_0", shapes, hyperparameters, importance=False, types={"output_norm.weight": GgmlType.Q8_0})
