"""Files that are not whole GGUF files are refused before llama.cpp sees them."""

from pathlib import Path

import gguf
import pytest

from edgeft.errors import ModelError
from edgeft.runtime import load
from edgeft.runtime.header import check_gguf


def write(path: Path, tokens: list[str]) -> Path:
    """A GGUF file with values of several types and no tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a", 1)
    writer.add_bool("b", True)
    writer.add_float64("c", 2.0)
    writer.add_array("d", [1, 2, 3])
    writer.add_token_list(tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_whole_files_pass(model_file: Path, tmp_path: Path) -> None:
    check_gguf(model_file)
    check_gguf(write(tmp_path / "small.gguf", ["a", "b"]))


def test_every_cut_of_the_header_is_seen(tmp_path: Path) -> None:
    content = write(tmp_path / "whole.gguf", ["a", "bc"]).read_bytes().rstrip(b"\0")
    cut = tmp_path / "cut.gguf"
    for length in range(4, len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(ModelError, match="incomplete"):
            check_gguf(cut)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_model_cut_short_is_refused(model_file: Path, tmp_path: Path, share: float) -> None:
    content = model_file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match="incomplete GGUF file"):
        load(cut)


def test_equal_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="two tokens have the same text"):
        check_gguf(write(tmp_path / "twice.gguf", ["a", "b", "a"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a GGUF file"),
        (b"GG", "not a GGUF file"),
        (b"PK\x03\x04 a zip", "not a GGUF file"),
        (b"GGUF", "incomplete"),
        (b"GGUF\x09\0\0\0" + bytes(16), "version 9"),
        (b"GGUF\x03\0\0\0" + bytes(8) + b"\xff" * 8, "incomplete"),
        (b"GGUF\x03\0\0\0" + b"\x01" + bytes(15) + bytes(8) + b"\x63\0\0\0", "99 dimensions"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said):
        load(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no\.gguf: cannot be read \(No such file"):
        load(tmp_path / "no.gguf")
    with pytest.raises(ModelError, match="a folder, not a model file"):
        load(tmp_path)
