"""Fixtures every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeft.machine.silence import no_telemetry

REPO_ROOT = Path(__file__).resolve().parent.parent
no_telemetry()  # before a test module imports onnxruntime through another library


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return REPO_ROOT


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is measured of this machine, here and in child processes, stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data sets and tiny real models; skips where there is none."""
    folder = Path(os.environ.get("EDGEFT_SHARED", REPO_ROOT.parent / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip("no $EDGEFT_SHARED folder here")
    return folder
