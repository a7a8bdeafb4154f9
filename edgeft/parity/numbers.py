"""How far apart two sets of logits, or two answers, are.

Shapes: R rows (positions), V entries of the vocabulary.
"""

from collections.abc import Sequence

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities (R, V) in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl_divergence(reference: np.ndarray, form: np.ndarray) -> np.ndarray:
    """KL(reference ‖ form) of each row of logits (R, V), in nats, float64 (R,)."""
    p, q = log_softmax(reference), log_softmax(form)
    divergence: np.ndarray = (np.exp(p) * (p - q)).sum(axis=-1)
    return divergence


def top1_agrees(reference: np.ndarray, form: np.ndarray) -> np.ndarray:
    """Whether the most likely token of each row is the same, bool (R,)."""
    agrees: np.ndarray = reference.argmax(axis=-1) == form.argmax(axis=-1)
    return agrees


def common_prefix(reference: Sequence[int | None], form: Sequence[int | None]) -> float:
    """Share of `reference` (not empty) that `form` begins with."""
    n_same = 0
    for ours, theirs in zip(reference, form, strict=False):
        if ours != theirs:
            break
        n_same += 1
    return n_same / len(reference)
