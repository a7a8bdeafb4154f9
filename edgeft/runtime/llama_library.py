"""llama-cpp-python's low-level bindings, without its high-level interface.

`import llama_cpp` also imports `llama_cpp.Llama` and what that needs (a disk cache, sqlite3, multiprocessing): 45 ms of
processor time, a fifth of what an application takes to start and answer. Nothing of it is used here. The package is
therefore begun as an empty module that its submodules can be imported from, and that runs its own `__init__` as soon
as somebody asks it for anything else. Others see the package they know.
"""

import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "llama_cpp"


class _Package(ModuleType):
    """A package whose `__init__` has not run yet."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec.name)
        self.__spec__, self.__loader__, self.__file__ = spec, spec.loader, spec.origin
        self.__package__, self.__path__ = spec.name, list(spec.submodule_search_locations)
        self._running = threading.RLock()
        self._begun = False

    def __getattr__(self, name: str) -> Any:
        with self._running:
            if not self._begun:
                self._begun = True
                self.__spec__.loader.exec_module(self)  # type: ignore[union-attr]
                self.__class__ = ModuleType  # type: ignore[assignment]
            return ModuleType.__getattribute__(self, name)


def build() -> str:
    """What stands for the libraries at hand, on this machine: their sizes and times. (Asking the installed package
    for its version takes 20 ms.)"""
    folder = Path(llama_cpp._lib._name).parent
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return " ".join(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in found)


def _low_level() -> Any:
    if PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is not None:
            sys.modules[PACKAGE] = _Package(spec)
    return importlib.import_module(f"{PACKAGE}.llama_cpp")


llama_cpp = _low_level()
