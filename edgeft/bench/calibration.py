"""Whether a model knows what it does not know: calibration of its confidence, and abstention.

The confidence in an answer is its probability, all tokens and the end token together (see `perplexity`).
"""

from collections.abc import Sequence

import numpy as np

from edgeft.bench.scores import Score
from edgeft.bench.shares import wilson_interval
from edgeft.bench.statistics import bootstrap_interval

BINS = 15


def ece_score(confidences: Sequence[float | None], outcomes: Sequence[float | None]) -> Score | None:
    """Expected calibration error of confidences in 0..1 against right (1) or wrong (0) answers; None: not counted.

    C. Guo et al., "On calibration of modern neural networks" (2017), equation 3, with their 15 bins of equal width:
    Σ_b |B_b| / n · |accuracy(B_b) - confidence(B_b)|. The interval is a bootstrap; the error of a finite sample is
    never 0, so it is biased upwards.
    """
    pairs = _pairs(confidences, outcomes)
    if not len(pairs):
        return None
    value = _ece(pairs)
    return Score(
        metric="ece",
        value=value,
        n=len(pairs),
        ci95=bootstrap_interval(len(pairs), lambda drawn: _ece(pairs[drawn])),
        interval="bootstrap",
        outcomes=(None,) * len(outcomes),
        detail={"bins": BINS, "confidence": float(pairs[:, 0].mean()), "accuracy": float(pairs[:, 1].mean())},
    )


def reliability(confidences: Sequence[float | None], outcomes: Sequence[float | None]) -> list[dict[str, float]]:
    """The bins behind `ece_score` that hold an example: `n`, mean `confidence` and `accuracy`."""
    pairs = _pairs(confidences, outcomes)
    bins = _bins(pairs[:, 0])
    return [
        {"n": len(inside), "confidence": float(inside[:, 0].mean()), "accuracy": float(inside[:, 1].mean())}
        for inside in (pairs[bins == place] for place in range(BINS))
        if len(inside)
    ]


def out_of_scope_score(
    wanted: Sequence[bool], answered: Sequence[bool], confidences: Sequence[float | None], threshold: float
) -> Score | None:
    """Recall of questions that are out of scope: on what share of them does the model abstain?

    By example: `wanted` to abstain, `answered` with the answer that abstains, the confidence in what was answered. A
    model abstains by that answer or by a confidence below `threshold`. None when no question is out of scope. The
    detail counts the price: `false_abstention`, the share of questions in scope it abstains on.
    """
    if not any(wanted):
        return None
    abstained = [
        said or (threshold > 0 and confidence is not None and confidence < threshold)
        for said, confidence in zip(answered, confidences, strict=True)
    ]
    outcomes = [float(did) if asked else None for asked, did in zip(wanted, abstained, strict=True)]
    hits, n = sum(outcome or 0 for outcome in outcomes), sum(wanted)
    in_scope = [did for asked, did in zip(wanted, abstained, strict=True) if not asked]
    return Score(
        metric="out_of_scope_recall",
        value=hits / n,
        n=n,
        ci95=wilson_interval(hits, n),
        interval="wilson",
        outcomes=tuple(outcomes),
        detail={
            "threshold": threshold,
            "precision": hits / sum(abstained) if any(abstained) else 0.0,
            "false_abstention": sum(in_scope) / len(in_scope) if in_scope else 0.0,
        },
    )


def _pairs(confidences: Sequence[float | None], outcomes: Sequence[float | None]) -> np.ndarray:
    """(n, 2) confidence and outcome of the examples that have both."""
    both = zip(confidences, outcomes, strict=True)
    rows = [(c, o) for c, o in both if c is not None and o is not None]
    return np.array(rows, dtype=np.float64).reshape(-1, 2)


def _bins(confidences: np.ndarray) -> np.ndarray:
    """Bin of each confidence: bin b holds those in (b / BINS, (b + 1) / BINS], and 0 belongs to the first."""
    return np.clip(np.ceil(confidences * BINS).astype(int) - 1, 0, BINS - 1)


def _ece(pairs: np.ndarray) -> float:
    bins = _bins(pairs[:, 0])
    gaps = np.bincount(bins, weights=pairs[:, 1] - pairs[:, 0], minlength=BINS)
    return float(np.abs(gaps).sum() / len(pairs))
