"""Files that are not whole and sane GGUF files are refused before llama.cpp sees them."""

import ctypes
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeft.errors import ModelError
from edgeft.runtime import load
from edgeft.runtime.gguf_format import MAGIC, TENSOR_TYPES, read_header
from edgeft.runtime.header import check_gguf
from tests.mutated_gguf import chosen


@pytest.fixture(scope="session")
def model_bytes(model_file: Path) -> bytes:
    return model_file.read_bytes()


Changed = Callable[..., Path]


@pytest.fixture
def changed(model_file: Path, tmp_path: Path) -> Changed:
    """`changed("llama.block_count", 0)`: the model with other values; None leaves the key out."""

    def write(key: str, value: Any, kind: gguf.GGUFValueType | None = None) -> Path:
        reader, path = gguf.GGUFReader(model_file), tmp_path / "changed.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.kv_data[0].clear()
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        entries: dict[str, tuple[Any, list[Any]]] = {name: (f.contents(), f.types) for name, f in fields.items()}
        entries.pop(key, None)
        if value is not None:
            entries[key] = (value, [kind])
        for name, (content, types) in entries.items():
            item = types[-1] if types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, content, types[0], item)
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def test_the_header_is_what_gguf_py_reads(model_file: Path) -> None:
    ours, theirs = check_gguf(model_file), gguf.GGUFReader(model_file)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert set(ours.values) == set(fields)
    for key, field in fields.items():
        value = ours.values[key].value
        if ours.values[key].item_kind == gguf.GGUFValueType.STRING:
            value = [text.decode() for text in value]
        assert (list(value) if isinstance(field.contents(), list) else value) == field.contents(), key
    assert {tensor.name: (tensor.data_offset, tensor.n_bytes) for tensor in theirs.tensors} == {
        tensor.name: (tensor.start, tensor.n_bytes) for tensor in ours.tensors.values()
    }


def test_tensor_types_are_those_of_the_c_library() -> None:
    library = ctypes.CDLL(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*")))
    library.ggml_type_size.restype, library.ggml_blck_size.restype = ctypes.c_size_t, ctypes.c_int64
    library.ggml_type_name.restype = ctypes.c_char_p
    for kind, (name, block, n_bytes) in TENSOR_TYPES.items():
        assert library.ggml_type_name(kind).decode().upper() == name
        assert (library.ggml_blck_size(kind), library.ggml_type_size(kind)) == (block, n_bytes), name


def test_every_cut_of_the_header_is_seen(model_bytes: bytes, model_file: Path, tmp_path: Path) -> None:
    end = min(tensor.start for tensor in read_header(model_file).tensors.values())
    cut = tmp_path / "cut.gguf"
    for length in range(len(MAGIC), end, 97):
        cut.write_bytes(model_bytes[:length])
        with pytest.raises(ModelError, match="incomplete"):
            check_gguf(cut)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_model_cut_short_is_refused(model_bytes: bytes, tmp_path: Path, share: float) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model_bytes[: int(len(model_bytes) * share)])
    with pytest.raises(ModelError, match="incomplete GGUF file"):
        load(cut)


NAN, INFINITE = math.nan, math.inf


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("general.architecture", None, "this is no model file"),
        ("general.type", "adapter", "of type 'adapter'"),
        ("split.count", 3, "one of 3 parts"),
        ("llama.block_count", 0, r"llama\.block_count = 0 \(byte \d+\): it is not from 1 to 512"),
        ("llama.block_count", 4_000_000_000, "not from 1 to 512"),
        ("llama.block_count", 3, "without a tensor"),
        ("llama.block_count", 1, r"the tensor 'blk\.1.* only 1 layers"),
        ("llama.block_count", None, "'llama.block_count' is missing"),
        ("llama.embedding_length", 32, r"the tensor 'blk\.0\.attn_norm\.weight' \(byte \d+\): has the shape \(64,\)"),
        ("llama.attention.layer_norm_rms_epsilon", -1e-5, "not between 0 and 1"),
        ("llama.attention.layer_norm_rms_epsilon", 0.0, "not between 0 and 1"),
        ("llama.attention.layer_norm_rms_epsilon", NAN, "not finite"),
        ("llama.attention.layer_norm_rms_epsilon", None, "must be a float32"),
        ("llama.rope.freq_base", INFINITE, "not finite"),
        ("llama.rope.freq_base", 0.0, "not positive"),
        ("llama.rope.scaling.type", "spiral", "is none of none, linear, yarn, longrope"),
        ("llama.attention.head_count", 0, "not positive"),
        ("llama.attention.head_count_kv", 3, "does not divide 4 heads"),
        ("llama.attention.head_count_kv", 0, "does not divide 4 heads"),
        ("llama.attention.key_length", 16, "does not fit values of length 32"),
        ("llama.rope.dimension_count", 30, "does not fit heads of 32"),
        ("llama.context_length", 0, "not from 1"),
        ("llama.expert_used_count", 2, "does not fit 2 experts"),
        ("llama.expert_count", 8, "does not fit 0 experts"),
        ("tokenizer.ggml.model", None, "the file has no vocabulary"),
        ("tokenizer.ggml.merges", None, "merges is missing"),
        ("tokenizer.ggml.eos_token_id", 99_999, "outside the vocabulary"),
    ],
)
def test_insane_values_are_refused(changed: Changed, key: str, value: Any, said: str) -> None:
    kinds = {str: gguf.GGUFValueType.STRING, float: gguf.GGUFValueType.FLOAT32, int: gguf.GGUFValueType.UINT32}
    with pytest.raises(ModelError, match=said):
        check_gguf(changed(key, value, kinds.get(type(value))))


def test_values_of_another_type_are_refused(changed: Changed) -> None:
    with pytest.raises(ModelError, match="is float32, not uint32"):
        check_gguf(changed("llama.context_length", 256.0, gguf.GGUFValueType.FLOAT32))
    with pytest.raises(ModelError, match="no uint32 power of two"):
        check_gguf(changed("general.alignment", 48, gguf.GGUFValueType.UINT32))


def vocabulary(path: Path, tokens: list[str], **arrays: list[Any]) -> Path:
    """A llama file of one layer and no attention, with the tokens given."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in (("context_length", 8), ("embedding_length", 2), ("block_count", 1)):
        writer.add_uint32(f"llama.{key}", value)
    for key in ("head_count", "head_count_kv"):
        writer.add_array(f"llama.attention.{key}", [1])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    for key, items in arrays.items():
        writer.add_array(f"tokenizer.ggml.{key}", items)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 2), np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.zeros(2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("tokens", "arrays", "said"),
    [
        (["a", "b", "a"], {}, "two tokens have the same text 'a', the second is 2"),
        (["a", "b", "c"], {"scores": [0.0, 1.0]}, "has 2 entries for 3 tokens"),
        (["a", "b", "c"], {"scores": [0.0, NAN, 1.0]}, "not finite"),
        (["a", "b", "c"], {"token_type": [1, 1, 9]}, "outside 0 to 6"),
        (["a", "b", "c"], {"token_type": ["x", "y", "z"]}, "array of string"),
        (["a"], {}, "asks to add it to every text"),
    ],
)
def test_broken_vocabularies_are_refused(tmp_path: Path, tokens: list[str], arrays: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_gguf(vocabulary(tmp_path / "v.gguf", tokens, **arrays))


def test_counts_a_layer_and_empty_tokens_pass(tmp_path: Path) -> None:
    check_gguf(vocabulary(tmp_path / "v.gguf", ["a", "b", "", ""], scores=[0.0] * 4, token_type=[1] * 4))


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
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2**62), "do not fit"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"a", 9, 10, 2**62), "incomplete"),
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


def test_a_mutant_passes_or_is_a_model_error(model_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "mutant.gguf"
    for name, content in chosen(model_file, 300, seed=3):
        path.write_bytes(content)
        said = refusal(path)
        assert said is None or str(path) in said, name


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(patches=st.lists(st.tuples(st.integers(4, 12_000), st.binary(min_size=1, max_size=12)), max_size=4))
def test_nothing_but_model_errors(model_bytes: bytes, tmp_path: Path, patches: list[tuple[int, bytes]]) -> None:
    content = bytearray(model_bytes)
    for at, new in patches:
        content[at : at + len(new)] = new
    path = tmp_path / "patched.gguf"
    path.write_bytes(content)
    refusal(path)


def refusal(path: Path) -> str | None:
    """What check_gguf says against the file; any other exception is for the test to show."""
    try:
        check_gguf(path)
    except ModelError as error:
        return str(error)
    return None
