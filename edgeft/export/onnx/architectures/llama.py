"""LlamaForCausalLM (Llama 2 and 3, SmolLM2). Checked by comparing logits with transformers."""

from edgeft.export.onnx.architectures._common import rms_decoder as decoder

__all__ = ["decoder"]
