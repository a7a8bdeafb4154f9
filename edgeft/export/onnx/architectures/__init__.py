"""What the ONNX graph of each architecture needs to know: one module a `model_type`, named as config.json names it.

`decoder(config)` of the module gives the numbers; the tensors are those of the GGUF architecture of the same name. A
file without a leading underscore is an architecture, and adding one is adding its file (docs/architectures.md).
"""

from pathlib import Path

from edgeft.export.architecture_modules import find_module, module_names
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures.base import Decoder, DecoderOf

TARGET = "ONNX as text-generation"


def decoder_of(config: Config, path: Path) -> DecoderOf:
    """The reader for the `config.json` in `path`. Raises ModelError, listing those supported."""
    module = find_module(config, path, package=__name__, supported=supported_decoders(), target=TARGET)
    decoder: DecoderOf = module.decoder
    return decoder


def supported_decoders() -> list[str]:
    """Every `model_type` with a module here (`_` for `-`), sorted; none of them is loaded."""
    return module_names(__path__, {"base"})


__all__ = ["Decoder", "DecoderOf", "decoder_of", "supported_decoders"]
