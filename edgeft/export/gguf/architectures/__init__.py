"""What a GGUF file of each architecture holds: one module a `model_type`, named as config.json names it (`_` for `-`).

`_decoder.py` and `_rope.py` and their like are what several of them share; a file without a leading underscore
is an architecture, and adding one is adding its file (docs/architectures.md).
"""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

__all__ = ["Architecture", "Config", "Metadata", "TensorRule", "architecture_of", "supported_model_types"]

HOW_TO_ADD = "docs/architectures.md says how to add one"


def architecture_of(config: dict[str, Any], path: Path) -> Architecture:
    """The architecture of the `config.json` in `path`. Raises ModelError, listing those supported."""
    model_type = config.get("model_type")
    supported = supported_model_types()
    module = str(model_type).replace("-", "_")
    if module not in supported:
        classes = ", ".join(config.get("architectures") or ["no class named"])
        raise ModelError(
            f"{path}: the architecture {model_type!r} ({classes}) cannot be exported to GGUF; "
            f"supported: {', '.join(supported)}; {HOW_TO_ADD}"
        )
    architecture: Architecture = importlib.import_module(f"{__name__}.{module}").ARCHITECTURE
    return architecture


def supported_model_types() -> list[str]:
    """Every `model_type` with a module here (`_` for `-`), sorted; none of them is loaded."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name for name in modules - {"base", "layout"} if not name.startswith("_"))
