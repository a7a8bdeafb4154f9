"""A small GGUF file and the folder it was made from."""

from pathlib import Path

import pytest

from edgeft.console import silent_log
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
