"""A small model folder, and how to write and read GGUF files in these tests."""

from pathlib import Path
from typing import Any

import pytest

from edgeft.console import silent_log
from tests.lively import make_lively_llama


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_lively_llama(tmp_path_factory.mktemp("lively"))


@pytest.fixture(scope="session")
def write() -> Any:
    """`write(folder, path, ftype="F32")` with the other arguments filled in; returns `path`."""

    def write_file(folder: Path, path: Path, ftype: str = "F32", **arguments: Any) -> Path:
        from edgeft.export.gguf import write_gguf

        fields = {"name": "tiny", "provenance": {}, "log": silent_log()} | arguments
        write_gguf(folder, path, ftype=ftype, **fields)
        return path

    return write_file
