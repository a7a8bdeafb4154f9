"""Finding the module of an architecture: one a `model_type`, named as config.json names it (`_` for `-`)."""

import importlib
import pkgutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeft.errors import ModelError

HOW_TO_ADD = "docs/architectures.md says how to add one"


def module_names(folders: Iterable[str], others: Collection[str]) -> list[str]:
    """Modules of a package (its `__path__`) that are architectures, sorted; none of them is loaded.

    Those with a leading underscore and `others` are not.
    """
    names = {module.name for module in pkgutil.iter_modules(folders)}
    return sorted(name for name in names.difference(others) if not name.startswith("_"))


def find_module(
    config: Mapping[str, Any], path: Path, *, package: str, supported: Collection[str], target: str
) -> ModuleType:
    """The module of `package` for the `config.json` in `path`.

    Raises ModelError, listing those `supported`, for a model that cannot be exported to `target`.
    """
    model_type = config.get("model_type")
    module = str(model_type).replace("-", "_")
    if module not in supported:
        classes = ", ".join(config.get("architectures") or ["no class named"])
        raise ModelError(
            f"{path}: the architecture {model_type!r} ({classes}) cannot be exported to {target}; "
            f"supported: {', '.join(supported)}; {HOW_TO_ADD}"
        )
    return importlib.import_module(f"{package}.{module}")
