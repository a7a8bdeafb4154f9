"""Fixtures every test may use, and which tests are quick."""

import os
import signal
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgeft.machine.silence import no_telemetry
from tests.helpers.light import HEAVY, is_light

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


class _NoHeavyLibraries(MetaPathFinder):
    """Ends a quick test that imports a heavy library: it would take seconds, and fail where there is none.

    Only importing fails. A look whether a library is installed (`importlib.util.find_spec`) is cheap and finds it.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in HEAVY else None
        if spec is not None:
            spec.loader = _Refusal()
        return spec


class _Refusal(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        raise ModuleNotFoundError(f"a quick test imports {spec.name}; mark it slow", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Never comes: there is no module."""


def _only_quick(config: pytest.Config) -> bool:
    return config.getoption("markexpr") == "quick"


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts its background jobs; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if _only_quick(config):
        sys.meta_path.insert(0, _NoHeavyLibraries())


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick` other files are not even imported: some of them import torch."""
    if _only_quick(config) and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return not is_light(collection_path) or None
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") is None and all(map(is_light, _files(item))):
            item.add_marker("quick")


def _files(item: pytest.Item) -> set[Path]:
    """The test's own file and those its fixtures stand in."""
    definitions = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009  pytest has no public word for it
    files = {
        Path(each.func.__code__.co_filename)
        for found in definitions
        for each in found
        if hasattr(each.func, "__code__")
    }
    return {item.path} | {path for path in files if path.is_relative_to(REPO_ROOT / "tests")}
