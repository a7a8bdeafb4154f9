"""LoRA layers computed by the functions of `fused_functions` in place of peft's.

peft computes an adapted layer as six torch operations that each keep their input, and copies it to float32 for the
adapter. Here a whole layer of the Llama family (norm, attention projections, rotation, output, SwiGLU) or, in other
architectures, each adapted linear layer is one function with a hand-written backward pass: the same numbers to
rounding, about half the memory and time. Modules, parameters and saved files stay peft's.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from edgeft.training.fused_functions import LoraProjections, Norm, Projection, Rotate, SwigluBlock

# Decoder layers of one structure: RMSNorm, attention with q, k, v, o and rotary embedding, RMSNorm, SwiGLU.
LAYERS = ("LlamaDecoderLayer", "Qwen2DecoderLayer", "MistralDecoderLayer")
NORMS = ("LlamaRMSNorm", "Qwen2RMSNorm", "MistralRMSNorm")
BASES = ("Linear", "Linear4bit")  # torch's and bitsandbytes'
Part = tuple[Projection, torch.Tensor | None, torch.Tensor | None]  # a linear layer, its A and its B


@dataclass
class Fusion:
    """What `fuse_lora` did: adapted layers fused and kept (by reason), and decoder layers fused whole."""

    fused: int = 0
    whole_layers: int = 0
    kept: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """One line for the log."""
        text = f"fused LoRA: {self.fused} layers"
        if self.kept:
            reasons = ", ".join(f"{n} for {reason}" for reason, n in sorted(self.kept.items()))
            text += f"; {sum(self.kept.values())} keep peft's forward ({reasons})"
        return text


def fuse_lora(model: PeftModel) -> Fusion:
    """Give the adapted layers of `model` the fused forward, in place, and say how many took it.

    An adapter with dropout, DoRA or another variant, a trained bias, or over something else than a frozen linear
    layer keeps peft's forward. Disabling, switching or merging adapters later works: a layer in a state that the
    fused functions do not know goes through peft's forward.
    """
    fusion = Fusion()
    for module in model.modules():
        if isinstance(module, LoraLayer):
            reason = _obstacle(module)
            if reason:
                fusion.kept[reason] += 1
            else:
                fusion.fused += 1
                _replace(module, _linear_forward)
    for layer in model.modules():
        if type(layer).__name__ in LAYERS and _layer_fits(layer):
            fusion.whole_layers += 1
            _replace(layer, _layer_forward)
    return fusion


def _replace(module: torch.nn.Module, forward: Callable[..., Any]) -> None:
    if "forward" not in vars(module):
        module.forward = partial(forward, module, module.forward)


def _obstacle(module: Any) -> str | None:
    """Why peft's forward has to stay, or None."""
    base = module.get_base_layer()
    if type(base).__name__ not in BASES:
        return f"a {type(base).__name__}"
    if module.lora_variant:
        return "DoRA or another variant"
    if any(not isinstance(d, torch.nn.Identity) for d in module.lora_dropout.values()):
        return "lora_dropout"
    if any(module.lora_bias.values()) or (base.bias is not None and base.bias.requires_grad):
        return "a trained bias"
    if base.weight.requires_grad or getattr(module, "fan_in_fan_out", False):
        return "a base that trains or is transposed"
    return None


def _layer_fits(layer: Any) -> bool:
    attention = layer.self_attn
    linear = _linear_layers(layer)
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return (
        attention.config.hidden_act in ("silu", "swish")
        and all(type(norm).__name__ in NORMS and not norm.weight.requires_grad for norm in norms)
        and all(_part(module) is not None for module in linear)
    )


def _linear_layers(layer: Any) -> list[torch.nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    first = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    return [*first, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _part(module: Any) -> Part | None:
    """The layer as the fused functions take it, as things stand now; None when only peft's forward will do."""
    if not isinstance(module, LoraLayer):
        frozen = type(module).__name__ in BASES and not any(p.requires_grad for p in module.parameters())
        return (Projection(module), None, None) if frozen else None
    if module.merged or _obstacle(module):
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or not active:
        return Projection(module.get_base_layer()), None, None
    if len(active) > 1:
        return None
    name = active[0]
    a: Any = module.lora_A[name]
    b: Any = module.lora_B[name]
    return Projection(module.get_base_layer(), module.scaling[name]), a.weight, b.weight


def _linear_forward(module: Any, peft_forward: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    part = None if args or kwargs else _part(module)
    if part is None:
        return peft_forward(x, *args, **kwargs)
    projection, a, b = part
    return LoraProjections.apply(x, None, None, (projection,), a, b)[0]


def _layer_forward(
    layer: Any,
    plain_forward: Callable[..., Any],
    hidden_states: torch.Tensor,
    *args: Any,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    parts = [_part(module) for module in _linear_layers(layer)]
    ready = [part for part in parts if part is not None]
    attends = layer.self_attn.config._attn_implementation in ALL_ATTENTION_FUNCTIONS
    cached = past_key_values is not None
    if args or cached or not attends or position_embeddings is None or len(ready) < len(parts):
        known = {"position_embeddings": position_embeddings, "past_key_values": past_key_values}
        return plain_forward(hidden_states, *args, **known, **kwargs)
    run = partial(_fused_layer, layer, ready, position_embeddings, kwargs)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(run, hidden_states)
    return run(hidden_states)


def _fused_layer(
    layer: Any,
    parts: list[Part],
    rotation: tuple[torch.Tensor, torch.Tensor],
    kwargs: dict[str, Any],
    x: torch.Tensor,  # (1, N, D); (B, T, D) when padded
) -> torch.Tensor:
    attention = layer.self_attn
    q, k, v = LoraProjections.apply(x, None, _norm(layer.input_layernorm), *_arguments(parts[:3]))
    cos, sin = (table.to(q.dtype).expand(len(x), -1, -1).flatten(0, 1) for table in rotation)
    heads = [t.view(cos.shape[0], -1, attention.head_dim) for t in (q, k, v)]  # (N, heads, D)
    query, key = Rotate.apply(heads[0], cos, sin), Rotate.apply(heads[1], cos, sin)
    rest = {name: value for name, value in kwargs.items() if name not in ("attention_mask", "use_cache")}
    attend = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
    attended, _ = attend(
        attention,
        *(t.view(*x.shape[:2], -1, attention.head_dim).transpose(1, 2) for t in (query, key, heads[2])),
        kwargs.get("attention_mask"),
        dropout=attention.attention_dropout if layer.training else 0.0,
        scaling=attention.scaling,
        sliding_window=_window(attention),
        **rest,
    )
    (x,) = LoraProjections.apply(attended.reshape(*x.shape[:2], -1), x, None, *_arguments(parts[3:4]))
    return SwigluBlock.apply(x, _norm(layer.post_attention_layernorm), *_arguments(parts[4:]))


def _arguments(parts: list[Part]) -> tuple[Any, ...]:
    """(projections, A1, B1, A2, B2, …) as the fused functions take them."""
    return (tuple(p for p, _, _ in parts), *(tensor for _, a, b in parts for tensor in (a, b)))


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _window(attention: Any) -> int | None:
    """Qwen2 keeps the window per layer, Mistral in its config."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window
    return getattr(attention.config, "sliding_window", None)
