"""GGUF files made of GGUF files by llama.cpp, and sets of files; gguf-py's reader tells what they hold."""

from pathlib import Path
from typing import Any, get_args

import gguf
import pytest

from edgeft.console import silent_log
from edgeft.errors import ModelError, RuntimeFault, UsageError
from edgeft.export.gguf import FTYPES, quantize_gguf
from edgeft.export.gguf.export import export_gguf
from edgeft.runtime import load
from edgeft.sections import Ftype
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="module")
def source(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, write: Any) -> Path:
    return write(model_folder, tmp_path_factory.mktemp("f32") / "model.gguf")


def types(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_recipes_may_name_only_what_is_written() -> None:
    assert set(get_args(Ftype)) <= set(FTYPES)


@pytest.mark.parametrize("ftype", ["Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M"])
def test_every_type_runs_and_tells_what_fell_back(ftype: str, source: Path, tmp_path: Path) -> None:
    """Rows of 64 and 128 do not divide into blocks of 256."""
    fallbacks = quantize_gguf(source, tmp_path / "out.gguf", ftype, n_threads=1)
    found = types(tmp_path / "out.gguf")
    for name, change in fallbacks.items():
        wanted, got = change.split(" -> ")
        assert found[name].lower() == got.lower()
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted.upper()]][0] == 256
    matrices = {tensor.name for tensor in gguf.GGUFReader(source).tensors if len(tensor.shape) == 2}
    assert ("blk.0.attn_q.weight" in fallbacks) == (ftype == "IQ4_XS" or "_K" in ftype)
    assert all(found[name] not in ("F32", "F16") for name in matrices)
    with load(tmp_path / "out.gguf", n_threads=1) as model:
        assert len(model.generate([5, 6], max_new_tokens=4)) <= 4


def test_true_k_quants_where_rows_fit(tmp_path: Path, write: Any) -> None:
    folder = make_tiny_llama(tmp_path / "wide", hidden_size=256, intermediate_size=512)
    source = write(folder, tmp_path / "f32.gguf")
    assert quantize_gguf(source, tmp_path / "q.gguf", "Q4_K_M", n_threads=1) == {}
    found = types(tmp_path / "q.gguf")
    assert {found["blk.0.attn_q.weight"], found["blk.0.ffn_up.weight"]} == {"Q4_K"}
    assert found["token_embd.weight"] == "Q6_K"
    assert found["blk.0.attn_norm.weight"] == "F32"


def test_the_same_bytes_twice_whatever_the_threads(source: Path, tmp_path: Path) -> None:
    contents = []
    for number, n_threads in enumerate((1, 1, 2)):
        path = tmp_path / f"{number}.gguf"
        quantize_gguf(source, path, "Q4_K_M", n_threads=n_threads)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_metadata_is_kept(model_folder: Path, tmp_path: Path, write: Any) -> None:
    source = write(model_folder, tmp_path / "a.gguf", provenance={"recipe_sha256": "ab"})
    quantize_gguf(source, tmp_path / "b.gguf", "Q8_0", n_threads=1)
    before, after = (gguf.GGUFReader(tmp_path / name).fields for name in ("a.gguf", "b.gguf"))
    changed = {key for key in before if before[key].contents() != after[key].contents()}
    assert changed <= {"general.file_type", "GGUF.kv_count"}
    assert after["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q8_0


def test_misuse(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown ftype Q9_X; known: F32, F16"):
        quantize_gguf(source, tmp_path / "out.gguf", "Q9_X")
    with pytest.raises(ModelError, match="cannot be read"):
        quantize_gguf(tmp_path / "missing.gguf", tmp_path / "out.gguf", "Q8_0")
    quantize_gguf(source, tmp_path / "q.gguf", "Q4_0", n_threads=1)
    with pytest.raises(RuntimeFault, match=r"did not quantize it to Q8_0: .*requantiz"):
        quantize_gguf(tmp_path / "q.gguf", tmp_path / "out.gguf", "Q8_0", n_threads=1)
    assert not (tmp_path / "out.gguf").exists()


def test_export_writes_what_is_asked_and_nothing_else(model_folder: Path, tmp_path: Path) -> None:
    log = silent_log()
    wanted = ["Q8_0", "F16", "Q4_K_M"]
    records = export_gguf(model_folder, tmp_path, name="m", ftypes=wanted, provenance={}, log=log)
    assert [record["ftype"] for record in records] == wanted
    assert {path.name for path in tmp_path.iterdir()} == {f"m-{ftype}.gguf" for ftype in wanted}
    assert [record["bytes"] for record in records] == [(tmp_path / r["file"]).stat().st_size for r in records]
    assert records[2]["fallbacks"]["blk.0.attn_q.weight"] == "q4_K -> q5_0"
    with pytest.raises(UsageError, match="unknown ftype Q9; known: F32, F16"):
        export_gguf(model_folder, tmp_path / "x", name="m", ftypes=["F16", "Q9"], provenance={}, log=log)
    assert not (tmp_path / "x").exists()
