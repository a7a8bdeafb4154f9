"""Backends by name and by file: the same answers from each, and one more by adding a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft import runtime
from edgeft.bench import backends
from edgeft.bench.backends import Setup
from edgeft.bench.file import BenchSettings, bench_file
from edgeft.bench.latency import LatencyPlan
from edgeft.console import silent_log
from edgeft.errors import ModelError, UsageError
from edgeft.export.gguf.write import write_gguf
from tests.onnx_graphs import write_decoder
from tests.tiny import make_tiny_llama

MESSAGES = [{"role": "user", "content": "set a timer"}]
N_GEN = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder with its GGUF file and its ONNX folder beside it."""
    folder = tmp_path_factory.mktemp("backends")
    make_tiny_llama(folder / "model")
    write_gguf(folder / "model", folder / "tiny.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    write_decoder(folder / "model", folder / "onnx", data_file="model.onnx.data")
    return folder


@pytest.mark.parametrize(
    ("name", "file", "found"),
    [
        (None, "a.gguf", "llama"),
        (None, "a.bin", "llama"),
        (None, "a.onnx", "onnx"),
        (None, "onnx", "onnx"),
        ("onnx", "onnx", "onnx"),
        ("torch", "folder", "torch"),
    ],
)
def test_found(tmp_path: Path, name: str | None, file: str, found: str) -> None:
    _touch(tmp_path)
    assert backends.find(tmp_path / file, name).__name__ == f"edgeft.bench.backends.{found}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "file", "error", "message"),
    [
        ("tensorrt", "a.gguf", UsageError, "no such one; choose among llama, onnx, torch"),
        (None, "nothing.gguf", ModelError, "no such file"),
        (None, "folder", ModelError, "export it first .*or measure it as it is: --backend torch"),
        (None, "empty", ModelError, r"export it first \(edgeft export\)$"),
        ("llama", "folder", ModelError, "not a model that the backend llama can open"),
        ("torch", "a.gguf", ModelError, "not a model that the backend torch can open"),
    ],
)
def test_not_found(tmp_path: Path, name: str | None, file: str, error: type[Exception], message: str) -> None:
    _touch(tmp_path)
    with pytest.raises(error, match=message):
        backends.find(tmp_path / file, name)


def _touch(folder: Path) -> None:
    for name in ("a.gguf", "a.bin", "a.onnx", "onnx/model.onnx", "folder/config.json", "empty/notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_one_more_backend_is_one_more_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "another.py").write_text(
        "BY_NAME_ONLY = False\nDISTRIBUTIONS = ()\ndef accepts(path): return path.suffix == '.another'\n"
    )
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(tmp_path)])
    (tmp_path / "model.another").touch()
    assert "another" in backends.names()
    assert backends.find(tmp_path / "model.another").__name__.endswith(".another")  # type: ignore[attr-defined]


def test_a_setup_comes_back_from_json() -> None:
    setup = Setup(backend="onnx", providers=("CUDAExecutionProvider",), cpus=(0, 2))
    assert Setup.from_json({**vars(setup), "providers": ["CUDAExecutionProvider"], "cpus": [0, 2]}) == setup
    assert [each.uses_gpu for each in (setup, Setup(), Setup(n_gpu_layers=-1), Setup(device="cuda"))] == [
        True, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), [("llama", "tiny.gguf"), ("onnx", "onnx"), ("torch", "model")])
def test_every_backend_answers_as_transformers_generates(folder: Path, name: str, file: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    reference = AutoModelForCausalLM.from_pretrained(folder / "model")
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = reference.generate(ids, max_new_tokens=N_GEN, min_new_tokens=N_GEN, do_sample=False)
    model = backends.find(folder / file, name).open_model(folder / file, Setup(n_ctx=64, n_threads=1))
    prompt = model.tokenize(model.render(MESSAGES))
    assert prompt == ids[0].tolist()
    answer = list(model.stream(prompt, max_new_tokens=N_GEN, ignore_eos=True))
    assert answer == expected[0, len(prompt) :].tolist()
    assert len(answer) == N_GEN
    model.close()


@pytest.mark.parametrize("tied", [True, False])
def test_the_work_of_a_model_by_hand(tmp_path: Path, tied: bool) -> None:
    """Two layers of 4 heads of 16, two of them for keys and values, inner width 128, from the configuration."""
    folder, file = make_tiny_llama(tmp_path / "model", tie_word_embeddings=tied), tmp_path / "tiny.gguf"
    write_gguf(folder, file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    vectors = 5 * 64
    for name, path in (("llama", file), ("torch", folder)):
        backend = backends.find(path, name)
        model: Any = backend.open_model(path, Setup(n_ctx=64, n_threads=1))
        work = backend.work(path, model)
        assert work is not None
        assert work.prompt_multiply_adds == matrices
        assert work.weight_bytes == 4 * (matrices + vectors + model.n_vocab * 64)  # the head; no table beside it
        assert work.kv_bytes_per_position == 2 * 2 * 32 * {"llama": 2, "torch": 4}[name]  # F16, and as the weights
        model.close()


def test_bench_of_the_eager_baseline(folder: Path) -> None:
    plan = LatencyPlan(synthetic=((8, 3),), repetitions=1, warmup=0, reloads=0, cold_loads=1)
    settings = BenchSettings(n_ctx=32, n_threads=1, latency=plan)
    result = bench_file(folder / "model", [], settings, Setup(backend="torch"), with_roofline=False, log=silent_log())
    content = result.to_json()
    assert [(run.n_prompt, len(run.itl_ms)) for run in result.measurement.runs] == [(8, 2)]
    assert set(content["latency"]["host"]["backend"]) == {"torch", "transformers"}
    assert content["accuracy"]["n"] == 0
    assert content["complete"]


def test_bench_of_an_onnx_folder(folder: Path) -> None:
    """In a child process, as every file; its weights lie in two files."""
    plan = LatencyPlan(synthetic=((8, 3),), repetitions=1, warmup=0, reloads=0, cold_loads=1)
    settings = BenchSettings(n_ctx=32, n_threads=1, latency=plan)
    result = bench_file(folder / "onnx", [], settings, with_roofline=False, log=silent_log())
    assert [(run.n_prompt, len(run.itl_ms)) for run in result.measurement.runs] == [(8, 2)]
    sizes = [(folder / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert result.measurement.size_bytes == sum(sizes)
    assert result.to_json()["latency"]["host"]["backend"].keys() == {"onnxruntime"}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: path.mkdir(), ModelError, "a folder, not a model file"),
        (lambda path: path.write_bytes(b"not a model"), ModelError, "not a GGUF file"),
    ],
)
def test_what_the_runtime_does_not_open(tmp_path: Path, make: Any, error: type[Exception], message: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(error, match=message):
        runtime.load(tmp_path / "model")


def test_a_device_torch_does_not_have(folder: Path) -> None:
    with pytest.raises(UsageError, match="device meta-physics: this torch does not have it"):
        backends.find(folder / "model", "torch").open_model(folder / "model", Setup(device="meta-physics"))
