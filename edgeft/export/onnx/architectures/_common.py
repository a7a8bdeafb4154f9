"""What decoders with rotary positions and RMS norms share."""

from collections.abc import Sequence
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures._decoder import sizes_of
from edgeft.export.gguf.architectures._rope import rope_parameters
from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.architectures.base import ACTIVATIONS, Activation, Decoder, Layer
from edgeft.export.onnx.rope import Rope, rope_of

SLIDING, FULL = "sliding_attention", "full_attention"


def rms_decoder(config: Config, layers: Sequence[Layer] | None = None, **numbers: Any) -> Decoder:
    """The decoder of `config`; without `layers` all rotate alike and see everything. `numbers` are other fields."""
    sizes = sizes_of(config)
    if layers is None:
        layers = [Layer(rope(config))] * sizes.n_layers
    fields: dict[str, Any] = {"activation": activation(config, "hidden_act")} | numbers
    return Decoder(
        n_vocab=sizes.n_vocab,
        width=sizes.width,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
        n_context=config["max_position_embeddings"],
        epsilon=float(config["rms_norm_eps"]),
        layers=tuple(layers),
        **fields,
    )


def rope(config: Config, layers: str = FULL, theta_key: str = "rope_theta") -> Rope:
    """The rotation; `layers` chooses between kinds of layers where the model has several, see `rope_parameters`."""
    return rope_of(config, rope_parameters(config, layers, theta_key), sizes_of(config).head_dim)


def activation(config: Config, key: str) -> Activation:
    """The activation that `key` names. Raises ModelError for one no graph here has."""
    name = config[key]
    if name not in ACTIVATIONS:
        raise ModelError(
            f"config.json: {key} {name!r} cannot be exported to ONNX; supported: {', '.join(sorted(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def window_of(config: Config, key: str = "sliding_window") -> int | None:
    """The window in tokens; None where there is none or it is no shorter than the context."""
    window: int | None = config.get(key)
    return window if window and window < config["max_position_embeddings"] else None


def sliding(config: Config, default: Sequence[bool]) -> list[bool]:
    """Which layers have the window: as `layer_types` says, or in files without it by `default`."""
    kinds = config.get("layer_types")
    return [kind == SLIDING for kind in kinds] if kinds else list(default)
