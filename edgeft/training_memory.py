"""What training holds in memory, as arithmetic on shapes: the training stage decides by it, preflight predicts by it.

Shapes: N tokens in a micro-batch, D hidden width, F width inside the MLP, H query and K key/value heads of width d,
L layers, r rank, V vocabulary; e bytes of an activation, w bytes of a weight. Per token and layer the fused functions
keep

    kept = e · (2 D + (2 H + 2 K) d + 2 F + 7 r)

(the inputs of both norms; q, k, v and the attended values; gate and up; x Aᵀ of seven adapters), and peft's own
forward about UNFUSED times that (its norms keep float32 copies, its MLP silu(gate) and the product). A recomputed
layer keeps e · D. The first n of the L layers are recomputed, when the others have let theirs go; the peak is

    process + w · weights + (16 + c) · trained + N · (max(L − n, 1) kept + n e D + e · (3 F + 4 D)) + logits

16 bytes for each trained number (itself, its gradient, two moments of AdamW, all float32) and c = 2 more for its copy
where products run in a type of 2 bytes, else 0; the last term in the bracket for what the backward pass of one layer
works in, and three float32 chunks of logits.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from edgeft.errors import RecipeError

LOGIT_BYTES = 32 << 20  # of float32 logits that exist at once: about what a processor's cache holds
PROCESS_BYTES = 450_000_000  # Python with torch, transformers and peft, before any model
UNFUSED = {2: 2.3, 4: 1.5}  # what peft's forward keeps for each byte of the fused functions, by bytes of an element
MASTER_BYTES = 4  # what trains is float32, whatever products run in
FREE_SHARE = 0.8  # of the free memory, when no budget is given
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
BINARY_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class ModelShape:
    """What the memory of training depends on. `weights` and `trained` count numbers, `weight_bytes` is all of the
    frozen weights', `element_bytes` one activation's, `rank` 0 without adapters."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    weight_bytes: int
    trained: int
    element_bytes: int
    rank: int = 0
    fused: bool = True


@dataclass(frozen=True)
class CheckpointChoice:
    """`layers` are recomputed; training then peaks at `peak_bytes`, which `fits` the budget or does not."""

    layers: int
    peak_bytes: int
    fits: bool


def predict_peak(shape: ModelShape, micro_batch_tokens: int, recomputed: int) -> int:
    """Peak bytes of training with `recomputed` layers; the formula is the module's."""
    e = shape.element_bytes
    projections = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_width
    kept = e * (2 * shape.hidden + projections + 2 * shape.inner + 7 * shape.rank)
    if not shape.fused:
        kept = round(UNFUSED[e] * kept)
    per_token = max(shape.layers - recomputed, 1) * kept + recomputed * e * shape.hidden
    per_token += e * (3 * shape.inner + 4 * shape.hidden)
    copied = e if e < MASTER_BYTES else 0
    fixed = PROCESS_BYTES + shape.weight_bytes + (16 + copied) * shape.trained + 3 * LOGIT_BYTES
    return fixed + micro_batch_tokens * per_token


def choose_checkpointing(shape: ModelShape, micro_batch_tokens: int, budget_bytes: int) -> CheckpointChoice:
    """The fewest layers to recompute so that training stays within the budget; all but the last where none suffice,
    for the last is recomputed as soon as it is dropped, which saves nothing."""
    for layers in range(shape.layers):
        peak = predict_peak(shape, micro_batch_tokens, layers)
        if peak <= budget_bytes:
            return CheckpointChoice(layers, peak, fits=True)
    return CheckpointChoice(shape.layers - 1, peak, fits=False)


def parse_memory(text: str) -> int:
    """Bytes of a size like `4GB`, `1.5 GiB` or `800M`; GB is 10⁹, GiB is 2³⁰. Raises RecipeError."""
    match = SIZE.fullmatch(text)
    if match is None or float(match[1]) == 0.0 or (match[3] and not match[2]):
        raise RecipeError(f"train.memory_budget: {text!r} is no size; write it like 4GB, 1.5GiB or 800MB")
    units = BINARY_UNITS if match[3] else UNITS
    return int(float(match[1]) * units[match[2].upper()])


def free_memory_budget() -> int:
    """`FREE_SHARE` of the memory this process could have, in bytes; without a limit where the system does not say.

    What the process holds already counts as free, for the prediction counts it too.
    """
    own = _kilobytes("/proc/self/status", "VmRSS") or 0
    free = _kilobytes("/proc/meminfo", "MemAvailable")
    return 1 << 62 if free is None else int(FREE_SHARE * (free + own) * 1024)


def _kilobytes(path: str, name: str) -> int | None:
    """A value of a /proc file; None where the system has no such file."""
    try:
        lines = Path(path).read_text("ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name + ":")), None)
