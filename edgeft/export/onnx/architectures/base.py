"""The words an architecture's module is written in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from edgeft.export.gguf.architectures.base import Config
from edgeft.export.onnx.rope import Rope

Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
"""transformers' names of the activations a graph can have."""


@dataclass(frozen=True)
class Layer:
    """What the attention of one layer sees."""

    rope: Rope | None = None
    """None: keys and queries are not rotated."""
    window: int | None = None
    """Tokens seen, the own one included; None: all before it."""


@dataclass(frozen=True)
class Decoder:
    """The numbers of a decoder's graph. Its parts (biases, norms, fused matrices) are known by its tensors."""

    n_vocab: int
    width: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_context: int
    """Positions the model was made for."""
    epsilon: float
    """Of the norms."""
    activation: Activation
    layers: tuple[Layer, ...]
    norm: Literal["rms", "layer"] = "rms"
    attention_scale: float | None = None
    """What scores are multiplied by; None: 1/sqrt(head_dim)."""
    attention_cap: float = 0.0
    """Scores become cap * tanh(score / cap); 0: they do not."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """What attention and feed-forward are multiplied by before they are added."""
    logit_scale: float = 1.0
    """What logits are multiplied by."""
    logit_cap: float = 0.0
    """As `attention_cap`."""
    n_experts: int = 0
    """In every layer; 0: there are none."""
    n_experts_used: int = 0
    """For one token."""
    normalize_experts: bool = True
    """Whether the shares of the experts used add up to one."""


DecoderOf = Callable[[Config], Decoder]
"""Reads config.json (with the defaults filled in). Raises ModelError for settings no graph here has."""
