"""GPT2LMHeadModel: learned positions, layer norms, matrices stored the other way round. Checked by comparing logits
with transformers."""

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures._common import activation
from edgeft.export.onnx.architectures.base import Decoder, Layer


def decoder(config: Config) -> Decoder:
    """See `DecoderOf`."""
    for key, value in (("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):
        if config[key] != value:
            raise ModelError(f"config.json: {key} {config[key]!r} cannot be exported to ONNX; only {value!r}")
    n_heads = config["n_head"]
    return Decoder(
        n_vocab=config["vocab_size"],
        width=config["n_embd"],
        n_heads=n_heads,
        n_kv_heads=n_heads,
        head_dim=config["n_embd"] // n_heads,
        n_context=config["n_positions"],
        epsilon=float(config["layer_norm_epsilon"]),
        activation=activation(config, "activation_function"),
        layers=(Layer(),) * config["n_layer"],
        norm="layer",
        attention_scale=None if config["scale_attn_weights"] else 1.0,
    )
