"""What each type would do to the output of a model, tensor by tensor.

The second-order estimate of `edgeft.quant.moments` costs two small matrix products a tensor and type. It is
scaled by a few true measurements: for every role (`ffn_down`, `attn_q`, …) all of its tensors are rounded
together, the model runs, and the ratio of the KL measured to the sum of the estimates is taken for all of the
role. On a fine-tuned edgeft-nano the estimates came to 0.7 to 1.0 of the truth before scaling.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgeft.console import Log
from edgeft.errors import UsageError
from edgeft.quant.ggml import GgmlType, block_size
from edgeft.quant.grids.fake import round_rows
from edgeft.quant.moments import Matrix
from edgeft.quant.planner import Option, tensor_bytes

FAST_CANDIDATES = (GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.Q6_K, GgmlType.Q8_0)
"""For rows that divide into blocks of 256: types that decode at least as fast as Q4_K_M where they take as many
bytes. In edgeft-nano on one core with AVX-512, Q4_K and Q4_0 came to 2,600 to 2,700 tokens/s, Q6_K and Q8_0 to
1,900, Q3_K to 1,900 and Q5_K to 1,550: the last two are not repacked for the CPU and cost more than they save."""

ALL_CANDIDATES = (GgmlType.Q3_K, GgmlType.Q4_0, GgmlType.Q4_K, GgmlType.Q5_K, GgmlType.Q6_K, GgmlType.Q8_0)
"""The same with those slow for their size, for files of other sizes than Q4_K_M."""

SHORT_ROW_CANDIDATES = (GgmlType.Q4_0, GgmlType.Q5_0, GgmlType.Q5_1, GgmlType.Q8_0)
"""For rows that only blocks of 32 fit."""

COARSE_BITS = 5.0
"""Calibration rounds to the largest candidate under this: errors large enough to stand out, and still small."""

SAMPLE_TOKENS = 2048
"""Tokens of the true measurements."""


def mix_options(
    model: Any,
    matrices: Mapping[str, Matrix],
    shapes: Mapping[str, Sequence[int]],
    sequences: Sequence[Sequence[int]],
    *,
    candidates: Sequence[GgmlType] = FAST_CANDIDATES,
    log: Log,
) -> dict[str, list[Option]]:
    """Every type each of `matrices` may take, with its bytes and the KL it adds, calibrated on `sequences`.

    `candidates` are for rows that divide into blocks of 256, SHORT_ROW_CANDIDATES for the others.
    `shapes` are those of the GGUF tensors, `matrices` what `collect_moments` found in `model`; `sequences` of
    token ids should not be those the moments come from. `model` is as before afterwards. Raises UsageError when a
    tensor fits no candidate.
    """
    changes: dict[str, dict[GgmlType, float]] = {}
    with log.progress("types", len(matrices), "tensors") as progress:
        for done, (name, matrix) in enumerate(matrices.items(), 1):
            changes[name] = {
                kind: matrix.divergence(_rounded(matrix, kind) - matrix.weight)
                for kind in _fitting(name, shapes[name][-1], candidates)
            }
            progress.update(done)
    factors = _factors(model, matrices, changes, sequences, log)
    return {
        name: [
            Option(kind.name, tensor_bytes(kind, shapes[name]), divergence * factors[role_of(name)])
            for kind, divergence in changes[name].items()
        ]
        for name in matrices
    }


def role_of(name: str) -> str:
    """What the tensors of all layers have in common: `blk.3.ffn_up.weight` -> `ffn_up`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def mean_divergence(model: Any, sequences: Sequence[Sequence[int]], reference: Sequence[torch.Tensor]) -> float:
    """Mean KL(reference ‖ model) in nats a token; `reference` are log-probabilities (T, V) from `log_probabilities`."""
    pairs = zip(log_probabilities(model, sequences), reference, strict=True)
    divergences = [(ours.exp() * (ours - theirs)).sum(dim=-1) for theirs, ours in pairs]
    return float(torch.cat(divergences).double().mean())


@torch.inference_mode()
def log_probabilities(model: Any, sequences: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
    """float32 (T, V) of each sequence."""
    for sequence in sequences:
        ids = torch.tensor([sequence], device=model.device)
        yield model(ids, use_cache=False).logits[0].float().log_softmax(dim=-1)


def _fitting(name: str, cols: int, candidates: Sequence[GgmlType]) -> list[GgmlType]:
    wanted = candidates if cols % 256 == 0 else SHORT_ROW_CANDIDATES
    kinds = [kind for kind in wanted if cols % block_size(kind) == 0]
    if not kinds:
        raise UsageError(f"ftype auto: rows of {cols} in {name} divide into no type's blocks; export F16")
    return kinds


def _rounded(matrix: Matrix, kind: GgmlType) -> np.ndarray:
    return round_rows(matrix.weight, kind, matrix.importance)


def _factors(
    model: Any,
    matrices: Mapping[str, Matrix],
    changes: Mapping[str, Mapping[GgmlType, float]],
    sequences: Sequence[Sequence[int]],
    log: Log,
) -> dict[str, float]:
    """By role, the measured KL of rounding all of its tensors over the estimate."""
    sample = _sample(sequences)
    reference = [ours.clone() for ours in log_probabilities(model, sample)]
    roles = sorted({role_of(name) for name in matrices})
    factors = {}
    with log.progress("measuring", len(roles), "roles") as progress:
        for done, role in enumerate(roles, 1):
            kinds = {name: _coarse(changes[name]) for name in matrices if role_of(name) == role}
            with _replaced([(matrices[name], _rounded(matrices[name], kind)) for name, kind in kinds.items()]):
                measured = mean_divergence(model, sample, reference)
            estimated = sum(changes[name][kind] for name, kind in kinds.items())
            factors[role] = measured / estimated if estimated > 0 else 1.0
            progress.update(done)
    return factors


def _coarse(kinds: Mapping[GgmlType, float]) -> GgmlType:
    """The type that is measured: the largest of few bits, or the smallest there is."""
    by_size = sorted(kinds, key=lambda kind: tensor_bytes(kind, (1, 1 << 12)))
    few = [kind for kind in by_size if tensor_bytes(kind, (1, 1 << 12)) / (1 << 9) <= COARSE_BITS]
    return few[-1] if few else by_size[0]


def _sample(sequences: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    taken: list[Sequence[int]] = []
    n_tokens = 0
    for sequence in sequences:
        if taken and n_tokens + len(sequence) > SAMPLE_TOKENS:
            break
        taken.append(sequence)
        n_tokens += len(sequence)
    return taken


@contextlib.contextmanager
def _replaced(weights: Sequence[tuple[Matrix, np.ndarray]]) -> Iterator[None]:
    """While the block lasts, the model computes with other weights (R, C)."""
    kept = []
    try:
        for matrix, rows in weights:
            parameter = matrix.parameter
            kept.append((parameter, parameter.data))
            values = torch.from_numpy(rows).to(parameter.device, parameter.dtype)
            parameter.data = values.T if matrix.transposed else values
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
