"""Phi3ForCausalLM (Phi-3, Phi-4-mini): a sliding window in every layer, LongRoPE. Checked by comparing logits."""

from edgeft.export.onnx.architectures.mistral import decoder

__all__ = ["decoder"]
