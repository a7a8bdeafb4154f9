"""GraniteForCausalLM: Llama with multipliers on embedding, attention, residual and logits. Checked by comparing
logits with transformers."""

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import rms_decoder
from edgeft.export.onnx.architectures.base import Decoder


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    return rms_decoder(
        config,
        attention_scale=float(config["attention_multiplier"]),
        embedding_scale=float(config["embedding_multiplier"]),
        residual_scale=float(config["residual_multiplier"]),
        logit_scale=1 / float(config["logits_scaling"]),
    )
