"""How sure an exported classifier may be: the temperature that makes its probabilities right on held-out texts.

Measured on the exported graph itself, so that what its integers do to the logits counts as well.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeft.artifact import write_atomic
from edgeft.runtime.encoder import EncoderModel
from edgeft.runtime.encoder_folder import CONFIDENCE, Confidence

COLDEST, HOTTEST = 0.05, 20.0
STEPS = 60
"""Golden sections: the temperature is then exact to 12 digits."""
GOLDEN = (5**0.5 - 1) / 2


def write_confidence(
    folder: Path, texts: Sequence[str], labels: Sequence[str], *, threshold: float, n_threads: int | None = None
) -> Confidence:
    """Measure the encoder in `folder` on `texts` with these `labels` and write its confidence.json.

    Texts whose label the model does not know are left out; without any other the temperature is 1.
    """
    with EncoderModel(folder, n_threads=n_threads) as model:
        places = {label: place for place, label in enumerate(model.labels)}
        known = [(text, places[label]) for text, label in zip(texts, labels, strict=True) if label in places]
        logits = model.logits([text for text, _ in known])
    temperature = fit_temperature(logits, np.array([place for _, place in known], np.int64)) if known else 1.0
    found = Confidence(temperature, threshold)
    write_atomic(folder / CONFIDENCE, json.dumps(found.to_json(), indent=1) + "\n")
    return found


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature, from COLDEST to HOTTEST, at which `labels` (N,) are most likely under the softmax of `logits`
    (N, C) over it.

    C. Guo et al., "On calibration of modern neural networks" (2017), section 4.2. In 1/T the mean negative
    log-likelihood is convex, so golden sections find its least value.
    """
    logits = logits.astype(np.float64)
    rows = np.arange(len(labels))

    def loss(sharpness: float) -> float:
        scaled = logits * sharpness
        largest = scaled.max(axis=1)
        total = largest + np.log(np.exp(scaled - largest[:, None]).sum(axis=1))
        return float((total - scaled[rows, labels]).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(STEPS):
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return 2 / (low + high)
