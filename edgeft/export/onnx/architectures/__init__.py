"""What the ONNX graph of each architecture needs to know: one module a `model_type`, named as config.json names it.

`decoder(config)` of the module gives the numbers; the tensors are those of the GGUF architecture of the same name. A
file without a leading underscore is an architecture, and adding one is adding its file (docs/architectures.md).
"""

import importlib
import pkgutil
from pathlib import Path

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures.base import Decoder, DecoderOf

HOW_TO_ADD = "docs/architectures.md says how to add one"


def decoder_of(config: Config, path: Path) -> DecoderOf:
    """The reader for the `config.json` in `path`. Raises ModelError, listing those supported."""
    model_type = config.get("model_type")
    supported = supported_decoders()
    module = str(model_type).replace("-", "_")
    if module not in supported:
        classes = ", ".join(config.get("architectures") or ["no class named"])
        raise ModelError(
            f"{path}: the architecture {model_type!r} ({classes}) cannot be exported to ONNX as text-generation; "
            f"supported: {', '.join(supported)}; {HOW_TO_ADD}"
        )
    decoder: DecoderOf = importlib.import_module(f"{__name__}.{module}").decoder
    return decoder


def supported_decoders() -> list[str]:
    """Every `model_type` with a module here (`_` for `-`), sorted; none of them is loaded."""
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(name for name in modules - {"base"} if not name.startswith("_"))


__all__ = ["Decoder", "DecoderOf", "decoder_of", "supported_decoders"]
