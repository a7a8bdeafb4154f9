"""Which file of a folder is opened, where it runs and with how many threads."""

from pathlib import Path

import pytest

from edgeft.errors import ModelError, RuntimeFault, UsageError
from edgeft.runtime.onnx_session import CPU, choose_providers, choose_threads, find_file


@pytest.mark.parametrize(
    ("files", "given", "found", "folder"),
    [
        (["model.onnx"], ".", "model.onnx", "."),
        (["model_q4.onnx"], ".", "model_q4.onnx", "."),
        (["model_q4.onnx", "model.onnx"], ".", "model.onnx", "."),
        (["onnx/model.onnx", "onnx/model_q4.onnx", "tokenizer.json"], ".", "onnx/model.onnx", "."),
        (["onnx/model.onnx", "onnx/model_q4.onnx", "tokenizer.json"], "onnx/model_q4.onnx", "onnx/model_q4.onnx", "."),
        (["onnx/model_q4.onnx", "onnx/tokenizer.json"], "onnx/model_q4.onnx", "onnx/model_q4.onnx", "onnx"),
        (["decoder_model_merged.onnx", "decoder_model.onnx"], ".", "decoder_model_merged.onnx", "."),
    ],
)
def test_the_file_of_a_folder(tmp_path: Path, files: list[str], given: str, found: str, folder: str) -> None:
    touch(tmp_path, files)
    assert find_file(tmp_path / given) == (tmp_path / found, tmp_path / folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [(["config.json"], "no .onnx file"), (["a.onnx", "onnx/b.onnx"], r"several models \(a.onnx, onnx/b.onnx\)")],
)
def test_no_file_of_a_folder(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, files)
    with pytest.raises(ModelError, match=message):
        find_file(tmp_path)


def touch(folder: Path, files: list[str]) -> None:
    for name in files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def test_providers() -> None:
    """The package for the processor has only its provider."""
    assert choose_providers([]) == [CPU]
    assert choose_providers(["CUDAExecutionProvider", CPU]) == [CPU]
    with pytest.raises(RuntimeFault, match="has none of the execution providers CUDAExecutionProvider; available"):
        choose_providers(["CUDAExecutionProvider"])
    with pytest.raises(UsageError, match=r"no execution provider is called 'cuda'; available here: .*CPUExecution"):
        choose_providers(["cuda", CPU])


def test_threads() -> None:
    assert choose_threads(3, 10) == 3
    assert choose_threads(None, 10) == 1
    assert choose_threads(None, 1 << 50) >= 1
