"""BitNetForCausalLM with its weights dequantized: two more norms, inside attention and feed-forward. Checked by
comparing logits with transformers."""

from edgeft.export.onnx.architectures._common import rms_decoder as decoder

__all__ = ["decoder"]
