"""Olmo2ForCausalLM: its tensors put the norms behind attention and feed-forward. Checked by comparing logits."""

from edgeft.export.onnx.architectures._common import rms_decoder as decoder

__all__ = ["decoder"]
