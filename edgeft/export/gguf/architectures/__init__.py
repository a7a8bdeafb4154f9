"""What a GGUF file of each architecture holds: one module a `model_type`, named as config.json names it (`_` for `-`).

`_decoder.py` and `_rope.py` and their like are what several of them share; a file without a leading underscore
is an architecture, and adding one is adding its file (docs/architectures.md).
"""

from pathlib import Path
from typing import Any

from edgeft.export.architecture_modules import find_module, module_names
from edgeft.export.gguf.architectures.base import Architecture, Config, Metadata, TensorRule

__all__ = ["Architecture", "Config", "Metadata", "TensorRule", "architecture_of", "supported_model_types"]


def architecture_of(config: dict[str, Any], path: Path) -> Architecture:
    """The architecture of the `config.json` in `path`. Raises ModelError, listing those supported."""
    module = find_module(config, path, package=__name__, supported=supported_model_types(), target="GGUF")
    architecture: Architecture = module.ARCHITECTURE
    return architecture


def supported_model_types() -> list[str]:
    """Every `model_type` with a module here (`_` for `-`), sorted; none of them is loaded."""
    return module_names(__path__, {"base", "layout"})
