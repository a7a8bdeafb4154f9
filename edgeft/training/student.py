"""A smaller model made out of a larger one of the Llama family: layers dropped, widths pruned by activation.

Shapes: N tokens, L layers, D hidden width, M neurons of an MLP, H query heads, K key/value heads, A width of a head.

What stays is what was active on calibration tokens, as in Minitron (Muralidharan et al. 2024, "Compact Language Models
via Pruning and Knowledge Distillation", section 2.2): a neuron by its activation, a head by the norm of its output, a
hidden channel by its value behind the norms, each the square root of its squares' sum over tokens.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from edgeft.errors import ModelError
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet

LayerStrategy = Literal["even", "block_influence"]
NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
# Which dimension of a layer's tensor is indexed by what; None stays whole.
SLICES: dict[str, tuple[str | None, ...]] = {
    "self_attn.q_proj.weight": ("query", "hidden"),
    "self_attn.k_proj.weight": ("key", "hidden"),
    "self_attn.v_proj.weight": ("key", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "query"),
    "self_attn.q_proj.bias": ("query",),
    "self_attn.k_proj.bias": ("key",),
    "self_attn.v_proj.bias": ("key",),
    "self_attn.o_proj.bias": ("hidden",),
    "self_attn.q_norm.weight": (None,),
    "self_attn.k_norm.weight": (None,),
    "mlp.gate_proj.weight": ("neuron", "hidden"),
    "mlp.up_proj.weight": ("neuron", "hidden"),
    "mlp.down_proj.weight": ("hidden", "neuron"),
    "mlp.gate_proj.bias": ("neuron",),
    "mlp.up_proj.bias": ("neuron",),
    "mlp.down_proj.bias": ("hidden",),
    **{f"{norm}.weight": ("hidden",) for norm in NORMS},
}
OUTER: dict[str, tuple[str | None, ...]] = {
    "model.embed_tokens.weight": (None, "hidden"),
    "model.norm.weight": ("hidden",),
    "lm_head.weight": (None, "hidden"),
}
LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Shape:
    """What the student is to have, by the names of its config; None: as the teacher."""

    num_hidden_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None


@dataclass
class Importance:
    """Sums of squares on calibration tokens: `hidden` (D,), and of each layer `neuron` (M,) and `head` (H,); and
    `influence` (L,), the mean 1 − cos of what goes into a layer and what comes out."""

    hidden: torch.Tensor
    neuron: list[torch.Tensor]
    head: list[torch.Tensor]
    influence: list[float]
    tokens: int = field(default=0)


def make_student(
    teacher: PreTrainedModel, shape: Shape, strategy: LayerStrategy, calibration: TokenSet, micro_batch_tokens: int
) -> PreTrainedModel:
    """A model of `shape` that holds the teacher's most active parts, in float32.

    `strategy`: layers kept are spaced `even`ly, the first and the last among them, or are those with the most
    `block_influence` (Men et al. 2024, "ShortGPT"). Raises ModelError when the shape is none that can be cut from the
    teacher, or its tensors are not named as the Llama family's are.
    """
    config = teacher.config.get_text_config()
    _check_names(teacher)
    wanted = _complete(shape, config)
    importance = measure_importance(teacher, calibration, micro_batch_tokens)
    layers = _kept_layers(wanted["num_hidden_layers"], strategy, importance)
    kept = {layer: _kept(importance, layer, wanted, config) for layer in layers}
    hidden = _largest(importance.hidden, wanted["hidden_size"])
    weights = {}
    for name, tensor in teacher.state_dict().items():
        found = LAYER.fullmatch(name)
        slices = SLICES[found[2]] if found else OUTER[name]
        if found and int(found[1]) not in kept:
            continue
        index = {"hidden": hidden} | (kept[int(found[1])] if found else {})
        for dimension, what in enumerate(slices):
            if what is not None:
                tensor = tensor.index_select(dimension, index[what].to(tensor.device))
        target = f"model.layers.{layers.index(int(found[1]))}.{found[2]}" if found else name
        weights[target] = tensor.float()
    student = _build(config, wanted, layers)
    student.load_state_dict(weights)
    return student


@torch.no_grad()
def measure_importance(teacher: PreTrainedModel, calibration: TokenSet, micro_batch_tokens: int) -> Importance:
    """How active the teacher's parts are on the calibration examples. The teacher then attends to packed rows."""
    decoder: Any = teacher.get_decoder()
    config = teacher.config.get_text_config()
    device = teacher.device
    n = len(decoder.layers)
    importance = Importance(
        torch.zeros(config.hidden_size, device=device),
        [torch.zeros(config.intermediate_size, device=device) for _ in range(n)],
        [torch.zeros(config.num_attention_heads, device=device) for _ in range(n)],
        [0.0] * n,
    )
    use_packed_attention(teacher)
    teacher.eval()
    with _watching(decoder, importance):
        start = 0
        while start < len(calibration):
            total = np.cumsum(calibration.lengths[start:])
            stop = start + max(1, int(np.searchsorted(total, micro_batch_tokens, side="right")))
            batch = calibration.pack(np.arange(start, stop))
            decoder(
                input_ids=batch.input_ids.to(device),
                position_ids=batch.position_ids.to(device),
                use_cache=False,
                sequence_groups=batch.groups,
            )
            importance.tokens += batch.n_tokens
            start = stop
    return importance


@contextmanager
def _watching(decoder: Any, importance: Importance) -> Iterator[None]:
    """Add what passes through the decoder's layers to `importance`."""

    def neurons(layer: int) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            importance.neuron[layer] += inputs[0].float().square().flatten(0, -2).sum(0)

        return hook

    def heads(layer: int) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            count = len(importance.head[layer])
            importance.head[layer] += (
                inputs[0].float().square().reshape(-1, count, inputs[0].shape[-1] // count).sum((0, 2))
            )

        return hook

    def channels(_: Any, __: Any, output: torch.Tensor) -> None:
        importance.hidden += output.float().square().flatten(0, -2).sum(0)

    def influence(layer: int) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.cosine_similarity(inputs[0].float(), after.float(), dim=-1)
            importance.influence[layer] += float((1 - cosine).sum())

        return hook

    hooks = []
    for number, layer in enumerate(decoder.layers):
        hooks.append(layer.mlp.down_proj.register_forward_pre_hook(neurons(number)))
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(heads(number)))
        hooks.append(layer.register_forward_hook(influence(number)))
        hooks += [getattr(layer, norm).register_forward_hook(channels) for norm in NORMS[:2]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_names(teacher: PreTrainedModel) -> None:
    for name in teacher.state_dict():
        found = LAYER.fullmatch(name)
        if (found[2] if found else name) not in (SLICES if found else OUTER):
            raise ModelError(
                f"{type(teacher).__name__} has the tensor {name}, and students are cut from models with Llama's "
                "tensors; give another one as distill.student.base"
            )


def _complete(shape: Shape, config: Any) -> dict[str, int]:
    """The shape with every number; raises ModelError when it cannot be cut from the teacher's."""
    wanted = {name: value or getattr(config, name) for name, value in vars(shape).items()}
    for name, value in wanted.items():
        if value > getattr(config, name):
            raise ModelError(
                f"distill.student.{name}: {value} is more than the teacher's {getattr(config, name)}; a student made "
                "from its teacher can only be smaller"
            )
    heads, kv_heads = wanted["num_attention_heads"], wanted["num_key_value_heads"]
    widest = config.num_attention_heads // config.num_key_value_heads
    if heads % kv_heads or heads // kv_heads > widest:
        raise ModelError(
            f"distill.student: {heads} heads over {kv_heads} key/value heads; the teacher shares one among {widest}, "
            f"so num_attention_heads must be a multiple of num_key_value_heads, and {widest} times it at most"
        )
    return wanted


def _kept_layers(count: int, strategy: LayerStrategy, importance: Importance) -> list[int]:
    n = len(importance.influence)
    if strategy == "even":
        return [n - 1] if count == 1 else [round(at * (n - 1) / (count - 1)) for at in range(count)]
    return _largest(torch.tensor(importance.influence), count).tolist()


def _kept(importance: Importance, layer: int, wanted: dict[str, int], config: Any) -> dict[str, torch.Tensor]:
    """Indexes of the neurons, and of the rows of query and key projections, that a layer keeps. Of key/value heads
    those whose query heads were most active together, and the same number of query heads for each."""
    kv_heads, per_head = wanted["num_key_value_heads"], wanted["num_attention_heads"] // wanted["num_key_value_heads"]
    by_group = importance.head[layer].view(config.num_key_value_heads, -1)  # (K, H / K)
    groups = _largest(by_group.sqrt().sum(1), kv_heads)
    queries = [int(g) * by_group.shape[1] + int(h) for g in groups for h in _largest(by_group[g], per_head)]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "neuron": _largest(importance.neuron[layer], wanted["intermediate_size"]),
        "query": _rows(queries, width),
        "key": _rows(groups.tolist(), width),
    }


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Indexes of the `count` largest, in their order."""
    return values.cpu().topk(count).indices.sort().values


def _rows(heads: Sequence[int], width: int) -> torch.Tensor:
    return torch.cat([torch.arange(head * width, (head + 1) * width) for head in heads])


def _build(config: Any, wanted: dict[str, int], layers: list[int]) -> PreTrainedModel:
    """A model of the teacher's family with `wanted` numbers, its heads as wide as the teacher's."""
    small = copy.deepcopy(config)
    small.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = getattr(config, "layer_types", None)
    try:
        for name, value in wanted.items():
            setattr(small, name, value)
        if types:
            small.layer_types = [types[layer] for layer in layers]
        small.dtype = torch.float32
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small, dtype=torch.float32, attn_implementation="sdpa"
        )
    except ValueError as error:
        raise ModelError(f"distill.student: transformers refuses this shape: {error}") from error
    return model
