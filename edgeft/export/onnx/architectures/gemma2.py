"""Gemma2ForCausalLM: soft-capped scores and logits, norms on both sides, every second layer sliding. Checked by
comparing logits with transformers."""

from collections.abc import Sequence

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import activation, rms_decoder, rope, sliding, window_of
from edgeft.export.onnx.architectures.base import Decoder, Layer


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    rotation, window = rope(config), window_of(config)
    slides = sliding(config, [layer % 2 == 0 for layer in range(config["num_hidden_layers"])])
    return gemma_decoder(config, [Layer(rotation, window if flag else None) for flag in slides])


def gemma_decoder(config: Config, layers: Sequence[Layer]) -> Decoder:
    """What Gemma 2 and 3 have in common. Raises ModelError for a model that sees both ways."""
    if config["use_bidirectional_attention"]:
        raise ModelError("config.json: use_bidirectional_attention: a decoder's graph sees only what came before")
    return rms_decoder(
        config,
        layers,
        activation=activation(config, "hidden_activation"),
        attention_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_cap=float(config["attn_logit_softcapping"] or 0),
        embedding_scale=config["hidden_size"] ** 0.5,
        logit_cap=float(config["final_logit_softcapping"] or 0),
    )
