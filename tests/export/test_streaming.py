"""The one pass from safetensors to a quantized file. Oracles: llama.cpp's own quantizer, and peft's own merge."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgeft.errors import ModelError, UsageError
from edgeft.export.gguf import stream
from edgeft.quant.ggml import GgmlType
from edgeft.quant.imatrix import Imatrix
from tests.export.quantizing import assert_same_tensors, llama_quantize
from tests.tiny import make_tiny_llama

FTYPES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS")
SHAPES: dict[str, dict[str, Any]] = {
    "rows of 256 and 512, a head": {
        "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "tie_word_embeddings": False,
    },
    "rows of 96 and 160, grouped queries": {
        "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 1,
        "head_dim": 16, "attention_bias": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("shape"), **SHAPES[request.param])


@pytest.fixture(scope="module")
def lossless(model: Path, tmp_path_factory: pytest.TempPathFactory, write: Any) -> Path:
    return write(model, tmp_path_factory.mktemp("lossless") / "f32.gguf")


def matrix_columns(path: Path) -> dict[str, int]:
    """The row length of every matrix of a file."""
    return {t.name: int(t.shape[0]) for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2}


def random_imatrix(path: Path) -> Imatrix:
    random = np.random.default_rng(5)
    sums = {name: random.random(n).astype(np.float32) + 0.01 for name, n in matrix_columns(path).items()}
    return Imatrix(sums, {name: np.array(4, np.float32) for name in sums}, ("random",), 1, 4)


@pytest.mark.parametrize("importance", [False, True], ids=["blindly", "with importance"])
def test_every_tensor_is_llama_quantizes(
    importance: bool, model: Path, lossless: Path, tmp_path: Path, write: Any
) -> None:
    imatrix = random_imatrix(lossless) if importance else None
    means = None if imatrix is None else {name: imatrix.importance(name) for name in imatrix.sums}
    for ftype in (*FTYPES, "IQ2_XXS") if importance else FTYPES:
        ours = write(model, tmp_path / "ours.gguf", ftype, imatrix=imatrix, n_threads=2)
        assert_same_tensors(ours, llama_quantize(lossless, tmp_path / "theirs.gguf", ftype, means))
        assert gguf.GGUFReader(ours).fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{ftype}"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_sources_lose_nothing(dtype: str, model: Path, tmp_path: Path, write: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(model).to(getattr(torch, dtype)).save_pretrained(tmp_path / "half")
    lossless = write(tmp_path / "half", tmp_path / "l.gguf", {"bfloat16": "BF16", "float16": "F16"}[dtype])
    ours = write(tmp_path / "half", tmp_path / "ours.gguf", "Q4_K_M")
    assert_same_tensors(ours, llama_quantize(lossless, tmp_path / "theirs.gguf", "Q4_K_M"))


def test_the_same_bytes_whatever_the_threads(
    model: Path, tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = []
    for n_threads, piece in ((1, 1 << 18), (3, 1 << 18), (2, 1000)):
        monkeypatch.setattr(stream, "PIECE_WEIGHTS", piece)
        monkeypatch.setattr(stream, "LARGE_BYTES", 0)
        contents.append(write(model, tmp_path / "q.gguf", "Q4_K_M", n_threads=n_threads).read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_types_and_rounder_of_the_caller(model: Path, tmp_path: Path, write: Any) -> None:
    asked: list[tuple[str, str, int]] = []

    def rounder(name: str, rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None) -> np.ndarray:
        asked.append((name, kind.name, rows.shape[1]))
        return stream.round_with_ggml(name, rows * 0, kind, importance)

    types = {"blk.0.ffn_up.weight": GgmlType.Q5_0, "blk.0.attn_q.weight": GgmlType.F16}
    out = write(model, tmp_path / "q.gguf", "Q8_0", types=types, rounder=rounder)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(out).tensors}
    assert {name: tensors[name].tensor_type.name for name in types} == {name: kind.name for name, kind in types.items()}
    assert ("blk.0.ffn_up.weight", "Q5_0", matrix_columns(out)["blk.0.ffn_up.weight"]) in asked
    assert "blk.0.attn_q.weight" not in {name for name, _, _ in asked}  # nothing to round on a grid
    assert not gguf.dequantize(tensors["blk.0.ffn_up.weight"].data, GgmlType.Q5_0).any()
    assert gguf.dequantize(tensors["blk.0.attn_q.weight"].data, GgmlType.F16).any()


def test_an_importance_matrix_of_another_model(model: Path, lossless: Path, tmp_path: Path, write: Any) -> None:
    imatrix = random_imatrix(lossless)
    imatrix.sums["blk.0.ffn_up.weight"] = np.ones(7, np.float32)
    with pytest.raises(ModelError, match=r"has \(7,\) on blk.0.ffn_up.weight"):
        write(model, tmp_path / "q.gguf", "Q4_0", imatrix=imatrix)
    del imatrix.sums["blk.0.ffn_up.weight"]
    write(model, tmp_path / "q.gguf", "Q4_0", imatrix=imatrix)
    if matrix_columns(lossless)["blk.0.ffn_up.weight"] == 256:
        with pytest.raises(UsageError, match=r"has nothing on blk.0.ffn_up.weight"):
            write(model, tmp_path / "x.gguf", "IQ2_XXS", imatrix=imatrix)
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(("ftype", "value", "message"), [
    ("BF16", np.nan, "o_proj.weight holds values that are not finite"),
    ("Q4_0", np.inf, "o_proj.weight holds values that are not finite"),
    ("F16", 1e6, r"o_proj.weight holds 1e\+06, too large for F16"),
])  # fmt: skip
def test_weights_no_file_can_hold(
    ftype: str, value: float, message: str, model: Path, tmp_path: Path, write: Any
) -> None:
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "bad"
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=message):
        write(folder, tmp_path / "q.gguf", ftype)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]
