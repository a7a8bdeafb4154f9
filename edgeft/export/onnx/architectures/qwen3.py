"""Qwen3ForCausalLM: its tensors have a norm on every head of q and k. Checked by comparing logits."""

from edgeft.export.onnx.architectures.qwen2 import decoder

__all__ = ["decoder"]
