"""A small GGUF file, an ONNX folder of the same model, and the folder they were made from."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.console import silent_log
from edgeft.runtime import Model, load
from tests.lively import make_lively_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively_llama(tmp_path_factory.mktemp("lively"), max_position_embeddings=1024)


@pytest.fixture(scope="session")
def model_file(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.gguf import write_gguf

    path = tmp_path_factory.mktemp("gguf") / "lively.gguf"
    write_gguf(model_folder, path, ftype="F32", name="lively", provenance={}, log=silent_log())
    return path


@pytest.fixture(scope="session")
def onnx_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.onnx_graphs import write_decoder

    return write_decoder(model_folder, tmp_path_factory.mktemp("onnx") / "lively")


@pytest.fixture(scope="session", params=["llama", "onnx"])
def either_path(request: pytest.FixtureRequest) -> Path:
    """The same model for either backend."""
    found: Path = request.getfixturevalue("model_file" if request.param == "llama" else "onnx_folder")
    return found


@pytest.fixture(scope="session")
def either(either_path: Path) -> Iterator[Model]:
    """The model in either backend, open for all tests."""
    with load(either_path, n_threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def theirs(model_folder: Path) -> Any:
    """The model in transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_folder).eval()


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Any:
    """Its tokenizer in transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)
