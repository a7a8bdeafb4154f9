"""`ftype: auto`: from a model and calibration tokens to the types of its tensors and how to round them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeft.console import Log
from edgeft.errors import UsageError
from edgeft.quant.ggml import GgmlType, block_size
from edgeft.quant.moments import collect_moments
from edgeft.quant.planner import MixPlan, plan_mix, tensor_bytes
from edgeft.quant.rounding import FeedbackRounder
from edgeft.quant.sensitivity import ALL_CANDIDATES, FAST_CANDIDATES, mix_options

MEASURED = 4
"""One sequence in so many is kept from the moments, for the true measurements."""


@dataclass(frozen=True)
class GgufTensor:
    """What must be known of a tensor of the file."""

    sources: tuple[str, ...]
    """The checkpoint's tensors it is made from."""
    shape: tuple[int, ...]
    """Row length last."""
    kind: GgmlType
    """Its type in the file to be bettered, such as Q4_K_M."""


@dataclass(frozen=True)
class Mix:
    """What `write_gguf` takes as `types` and `rounder`."""

    plan: MixPlan
    rounder: FeedbackRounder


def auto_mix(
    model: Any,
    sequences: Sequence[Sequence[int]],
    tensors: Mapping[str, GgufTensor],
    *,
    target_bytes: int | None = None,
    max_kl: float | None = None,
    log: Log,
) -> Mix:
    """The best mix of types for the causal `model`, and its rounder with error feedback.

    `tensors` are all of the file, by GGUF name. `target_bytes` bounds the data of all of them, `max_kl` (nats a
    token, as measured on calibration tokens, with ggml's rounding) the divergence; without either the mix is no
    larger than the types that `tensors` have, and made of types that decode as fast. Tensors that cannot be
    measured (stacks of experts, fused ones) keep theirs. A few thousand tokens in `sequences` are enough.

    Raises UsageError when the limits cannot be met or there are too few sequences, ModelError when the model
    overflows.
    """
    if len(sequences) < 2:
        raise UsageError("ftype auto needs at least two calibration sequences; give more or longer texts")
    quantized = {name: tensor for name, tensor in tensors.items() if block_size(tensor.kind) > 1}
    sources = {name: tensor.sources for name, tensor in quantized.items()}
    measured = sequences[::MEASURED]
    seen = [sequence for number, sequence in enumerate(sequences) if number % MEASURED]
    matrices = collect_moments(model, seen, sources, log=log)
    shapes = {name: tensors[name].shape for name in matrices}
    like_default = target_bytes is None and max_kl is None
    candidates = FAST_CANDIDATES if like_default else ALL_CANDIDATES
    options = mix_options(model, matrices, shapes, measured, candidates=candidates, log=log)
    sizes = {name: tensor_bytes(tensor.kind, tensor.shape) for name, tensor in tensors.items()}
    if like_default:
        target_bytes = sum(sizes.values())
    if target_bytes is not None:
        target_bytes -= sum(n_bytes for name, n_bytes in sizes.items() if name not in matrices)
    plan = plan_mix(options, target_bytes=target_bytes, max_kl=max_kl)
    n_weights = sum(math.prod(shapes[name]) for name in matrices)
    log.say(f"auto: {plan.n_bytes * 8 / n_weights:.2f} bits a weight\n{plan.table()}")
    return Mix(plan, FeedbackRounder({name: matrix.hessian for name, matrix in matrices.items()}))
