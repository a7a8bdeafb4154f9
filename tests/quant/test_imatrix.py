"""The importance matrix: llama.cpp is the oracle, of what it holds and of how it is stored."""

import ctypes
import json
import os
import struct
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from click.testing import CliRunner

from edgeft.console import silent_log
from edgeft.errors import DataError, ModelError
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf import write_gguf
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.quant import ggml
from edgeft.quant.collect import folder_calibration, importance_of_folder
from edgeft.quant.collect_gguf import file_calibration, importance_of_file
from edgeft.quant.imatrix import Collector, Imatrix, read_imatrix, write_imatrix
from edgeft.runtime.llama_eval import Node, WatchedLlama
from tests.lively import make_lively_llama
from tests.tiny_models import make_model

TEXT = "The old bridge at the edge of town had been closed since the spring. " * 40
CHAT = "\n".join(
    f'{{"messages": [{{"role": "user", "content": "set a timer for {n} minutes"}}, '
    f'{{"role": "assistant", "content": "done: {n}"}}]}}'
    for n in range(40)
)
LIMITS: dict[str, Any] = {"max_tokens": 1500, "chunk_size": 128}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively_llama(tmp_path_factory.mktemp("lively"), hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder / "model.gguf"
    write_gguf(folder, path, ftype="F32", name="lively", provenance={}, log=silent_log())
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("data")
    (path / "train.jsonl").write_text(CHAT)
    (path / "general.txt").write_text(TEXT)
    return {"examples": path / "train.jsonl", "text": path / "general.txt"}


def tensors_of(folder: Path) -> dict[str, tuple[str, ...]]:
    return {rule.name: rule.sources for rule in lay_out(read_folder(folder), open_checkpoint(folder)).rules}


@pytest.fixture(scope="module")
def imatrix(folder: Path, data: dict[str, Path]) -> Imatrix:
    tensors = tensors_of(folder)
    return importance_of_folder(folder, tensors, **data, **LIMITS, process_output=True, log=silent_log())


def test_it_is_what_llama_cpp_multiplies(folder: Path, file: Path, data: dict[str, Path], imatrix: Imatrix) -> None:
    """in_sum2 by llama-imatrix's formula (`collect_imatrix` in imatrix.cpp), token after token in float64."""
    sums: dict[str, Any] = {}

    def add(node: Node) -> None:
        weight, inputs = node.sources()[:2]
        for row in inputs.array().reshape(-1, inputs.shape[-1]).astype(np.float64):
            sums[weight.name] = sums.get(weight.name, 0.0) + row * row

    calibration = folder_calibration(folder, **data, **LIMITS)
    with WatchedLlama(file, n_ctx=128, n_threads=1) as model:
        assert file_calibration(model, **data, **LIMITS) == calibration
        for ids in calibration.sequences:
            model.watch(ids, lambda node: node.op == "MUL_MAT" and ".weight" in node.sources()[0].name, add)
    matrices = {name for name in tensors_of(folder) if name.endswith("weight") and "norm" not in name}
    assert set(imatrix.sums) == set(sums) == matrices - {"token_embd.weight"}
    for name, expected in sums.items():
        np.testing.assert_allclose(imatrix.sums[name], expected, rtol=0.01, err_msg=name)
        assert imatrix.counts[name] == calibration.n_tokens
        np.testing.assert_allclose(imatrix.importance(name), expected / calibration.n_tokens, rtol=0.01)
    assert imatrix.datasets == ("train.jsonl", "general.txt")
    assert imatrix.n_chunks == calibration.n_tokens // 128


def test_a_file_alone_gives_the_same(file: Path, data: dict[str, Path], imatrix: Imatrix) -> None:
    ours = importance_of_file(file, **data, **LIMITS, n_threads=1, log=silent_log())
    assert set(ours.sums) == {name for name in imatrix.sums if name.startswith("blk.")}
    for name, sums in ours.sums.items():
        np.testing.assert_allclose(sums, imatrix.sums[name], rtol=0.01, err_msg=name)
        assert ours.counts[name] == imatrix.counts[name]


def test_llama_cpp_quantizes_with_it(file: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    """What was written is read again and handed to llama_model_quantize; ggml_quantize_chunk gives the same bytes."""
    write_imatrix(tmp_path / "imatrix.gguf", imatrix)
    stored = read_imatrix(tmp_path / "imatrix.gguf")
    out = tmp_path / "q.gguf"
    importance = {name: stored.importance(name) for name in stored.sums}
    entries = [(name.encode(), values.ctypes.data, values.size) for name, values in importance.items()]
    array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
    for entry, (name, address, size) in zip(array, entries, strict=False):
        entry.name, entry.data, entry.size = name, ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), size
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.imatrix = llama_cpp.LLAMA_FTYPE_MOSTLY_IQ2_XS, 1, array
    assert llama_cpp.llama_model_quantize(os.fsencode(file), os.fsencode(out), ctypes.byref(params)) == 0
    check_bytes(file, out, importance)


def check_bytes(file: Path, quantized: Path, importance: dict[str, Any]) -> None:
    weights = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    kinds = set()
    for tensor in gguf.GGUFReader(quantized).tensors:
        if tensor.name in importance:
            kinds.add(tensor.tensor_type.name)
            expected = ggml.quantize(weights[tensor.name], tensor.tensor_type, importance[tensor.name])
            np.testing.assert_array_equal(tensor.data, expected, err_msg=tensor.name)
    assert "IQ2_XS" in kinds


def test_llama_quantize_reads_it(file: Path, imatrix: Imatrix, tmp_path: Path) -> None:
    tools = os.environ.get("EDGEFT_LLAMA_TOOLS")
    if not tools:
        pytest.skip("EDGEFT_LLAMA_TOOLS names no folder with llama-quantize")
    write_imatrix(tmp_path / "imatrix.gguf", imatrix)
    command = [f"{tools}/llama-quantize", "--imatrix", "imatrix.gguf", str(file), "q.gguf", "IQ2_XS", "1"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    n = len(imatrix.sums)
    assert f"loaded {n} importance matrix entries from imatrix.gguf computed on {imatrix.n_chunks} chunks" in run.stdout
    check_bytes(file, tmp_path / "q.gguf", {name: imatrix.importance(name) for name in imatrix.sums})


def test_a_matrix_survives_the_file(tmp_path: Path, imatrix: Imatrix) -> None:
    experts = {"blk.0.ffn_up_exps.weight": np.arange(12, dtype=np.float32).reshape(3, 4)}
    counts = {"blk.0.ffn_up_exps.weight": np.array([2, 0, 5], np.float32)}
    stacked = Imatrix(
        {**imatrix.sums, **experts}, {**imatrix.counts, **counts}, imatrix.datasets, imatrix.n_chunks, 128
    )
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for path in paths:
        write_imatrix(path, stacked)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    read = read_imatrix(paths[0])
    for name in stacked.sums:
        np.testing.assert_array_equal(read.sums[name], stacked.sums[name])
        np.testing.assert_array_equal(read.counts[name], stacked.counts[name])
    assert (read.datasets, read.n_chunks, read.chunk_size) == (stacked.datasets, stacked.n_chunks, 128)
    # As llama-quantize's load_imatrix: an expert that was never chosen counts every column alike.
    expected = [[0, 0.5, 1, 1.5], [1, 1, 1, 1], [1.6, 1.8, 2, 2.2]]
    np.testing.assert_allclose(read.importance("blk.0.ffn_up_exps.weight"), np.float32(expected))
    assert read.importance("blk.9.attn_q.weight") is None


def dat(*entries: tuple[str, int, list[float]], tail: bytes = b"") -> bytes:
    """As `save_imatrix_legacy` in imatrix.cpp writes: int32 everywhere, mean · calls as values."""
    body = b"".join(
        struct.pack(f"<i{len(name)}sii{len(values)}f", len(name), name.encode(), calls, len(values), *values)
        for name, calls, values in entries
    )
    return struct.pack("<i", len(entries)) + body + tail


def test_the_older_form_is_read(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat(("blk.0.attn_q.weight", 4, [2.0, 8.0]), tail=struct.pack("<ii5s", 7, 5, b"a.txt")))
    read = read_imatrix(path)
    np.testing.assert_array_equal(read.importance("blk.0.attn_q.weight"), np.float32([0.5, 2.0]))
    assert (read.datasets, read.n_chunks) == (("a.txt",), 7)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "neither of llama.cpp's importance matrix formats"),
        (b"nonsense, but long enough to hold a number", "neither of llama.cpp's"),
        (dat(("blk.0.attn_q.weight", 4, [2.0, 8.0]))[:-1], "neither of llama.cpp's"),
        (dat(("blk.0.attn_q.weight", 4, [2.0, float("nan")])), "blk.0.attn_q.weight has squares that are negative"),
        (dat(("blk.0.attn_q.weight", 4, [-1.0])), "negative or not finite"),
        (dat(), "without entries"),
        (b"GGUF", "header"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "imatrix"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        read_imatrix(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_imatrix(tmp_path / "missing")


def test_a_model_is_no_matrix(file: Path) -> None:
    with pytest.raises(ModelError, match="not an importance matrix"):
        read_imatrix(file)


def test_overflow_names_the_tensor() -> None:
    collector = Collector()
    with pytest.raises(ModelError, match="no activations were seen"):
        collector.imatrix(("a",), 512)
    with pytest.raises(ModelError, match=r"blk\.0\.ffn_down\.weight: its input is not finite"):
        collector.add("blk.0.ffn_down.weight", np.array([1.0, np.inf]), 3)


def test_calibration_is_limited_and_the_same_every_time(folder: Path, data: dict[str, Path]) -> None:
    one, two = (folder_calibration(folder, **data, max_tokens=600, chunk_size=64) for _ in range(2))
    other = folder_calibration(folder, **data, max_tokens=600, chunk_size=64, seed=1)
    assert one == two != other
    assert 500 < one.n_tokens <= 600
    lengths = [len(sequence) for sequence in one.sequences]
    assert lengths.count(64) == 2, "a quarter, in whole chunks, is general text"
    with pytest.raises(DataError, match="no tokens to measure the model on"):
        folder_calibration(folder, examples=None, text=None, max_tokens=10, chunk_size=5)
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        folder_calibration(folder, examples=None, text=folder / "no.txt", max_tokens=10, chunk_size=5)


def test_a_tensor_without_module_is_named(folder: Path, data: dict[str, Path]) -> None:
    tensors = {"blk.0.attn_q.weight": ("model.layers.7.self_attn.q_proj.weight",)}
    with pytest.raises(ModelError, match=r"no module model\.layers\.7\.self_attn\.q_proj"):
        importance_of_folder(folder, tensors, **data, **LIMITS, log=silent_log())


@pytest.mark.parametrize("source", ["folder", "file"])
def test_the_command_writes_one(source: str, folder: Path, file: Path, data: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    command = import_module("edgeft.cli.imatrix").command("imatrix", "Collect.")
    model = folder if source == "folder" else file
    options = ["--data", str(data["examples"]), "-o", str(out), "--max-tokens", "800", "--chunk-size", "128", "--json"]
    result = CliRunner().invoke(command, [str(model), *options], catch_exceptions=False)
    written = read_imatrix(out)
    facts = {"file": str(out), "tensors": 14, "tokens": int(next(iter(written.counts.values())))}
    assert json.loads(result.stdout) == {**facts, "datasets": ["train.jsonl", "canary.txt"]}
    assert len(written.sums) == 14
    assert 600 < facts["tokens"] <= 800


@pytest.mark.parametrize("kind", ["gpt2", "phi3", "qwen3_moe"])
def test_transposed_fused_and_stacked_matrices(kind: str, data: dict[str, Path], tmp_path: Path) -> None:
    """What transformers keeps transposed (GPT-2), fused (Phi-3) or stacked by experts; llama.cpp is the oracle."""
    folder, file = make_model(tmp_path / "model", kind), tmp_path / "model.gguf"
    write_gguf(folder, file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    limits = {"max_tokens": 400, "chunk_size": 64, "log": silent_log()}
    ours = importance_of_folder(folder, tensors_of(folder), **data, **limits)
    theirs = importance_of_file(file, **data, **limits, n_threads=1)
    assert set(ours.sums) == set(theirs.sums)
    for name, sums in theirs.sums.items():
        np.testing.assert_array_equal(ours.counts[name], theirs.counts[name], err_msg=name)
        np.testing.assert_allclose(ours.sums[name], sums, rtol=0.01, err_msg=name)
