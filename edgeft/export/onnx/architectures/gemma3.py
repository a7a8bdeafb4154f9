"""The text model of Gemma3ForConditionalGeneration; what sees images is left out."""

from edgeft.export.onnx.architectures.gemma3_text import decoder

__all__ = ["decoder"]
