"""What a GGUF file of each architecture holds: one module a model type, found through the table here."""

from pathlib import Path
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import llama
from edgeft.export.gguf.architectures.base import Architecture, Metadata, TensorRule

__all__ = ["ARCHITECTURES", "Architecture", "Metadata", "TensorRule", "architecture_of"]

ARCHITECTURES: dict[str, Architecture] = {"llama": llama.ARCHITECTURE}
"""By `model_type` of config.json."""


def architecture_of(config: dict[str, Any], path: Path) -> Architecture:
    """The architecture of the `config.json` in `path`. Raises ModelError, listing those supported."""
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        classes = ", ".join(config.get("architectures") or ["no class named"])
        raise ModelError(
            f"{path}: the architecture {model_type!r} ({classes}) cannot be exported to GGUF; "
            f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    return ARCHITECTURES[model_type]
