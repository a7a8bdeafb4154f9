"""Qwen3MoeForCausalLM: Qwen 3 with experts in every layer. Checked by comparing logits."""

from dataclasses import replace

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.gguf.architectures.qwen3_moe import check_layers, n_experts
from edgeft.export.onnx.architectures import qwen3
from edgeft.export.onnx.architectures.base import Decoder


def decoder(config: Config) -> Decoder:
    """Raises ModelError for layers without experts."""
    check_layers(config)
    return replace(
        qwen3.decoder(config),
        n_experts=n_experts(config),
        n_experts_used=config["num_experts_per_tok"],
        normalize_experts=config["norm_topk_prob"],
    )
