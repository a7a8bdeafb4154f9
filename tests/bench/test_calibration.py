"""Calibration and abstention against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import precision_score, recall_score

from edgeft.bench.calibration import BINS, ece_score, out_of_scope_score, reliability


@pytest.mark.parametrize("seed", range(3))
def test_ece_equals_equation_3_over_scikit_learns_bins(seed: int) -> None:
    generator = np.random.default_rng(seed)
    confidences = np.append(generator.uniform(size=300), [0.0, 1.0, 0.2, 0.4])  # edges as well
    outcomes = (generator.uniform(size=304) < confidences**2).astype(float)
    accuracy, confidence = calibration_curve(outcomes, confidences, n_bins=BINS)
    places = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidences)
    counts = np.bincount(places, minlength=BINS)
    expected = float(np.sum(counts[counts > 0] / 304 * np.abs(accuracy - confidence)))
    score = ece_score(confidences.tolist(), outcomes.tolist())
    assert score is not None
    assert score.value == pytest.approx(expected, abs=1e-12)
    rows = reliability(confidences.tolist(), outcomes.tolist())
    assert [row["n"] for row in rows] == counts[counts > 0].tolist()
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracy)
    assert [row["confidence"] for row in rows] == pytest.approx(confidence)


def test_ece_of_a_model_that_knows_is_zero_and_of_a_boaster_its_errors() -> None:
    knows = ece_score([1.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    boasts = ece_score([1.0] * 4, [1.0, 0.0, 0.0, 0.0])
    assert knows is not None
    assert boasts is not None
    assert (knows.value, boasts.value) == (0.0, 0.75)


def test_ece_counts_what_has_both() -> None:
    score = ece_score([0.9, None, 0.9], [1.0, 1.0, None])
    assert score is not None
    assert (score.n, score.outcomes) == (1, (None, None, None))
    assert ece_score([None], [1.0]) is None
    assert reliability([None], [1.0]) == []


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_abstention_equals_scikit_learn(threshold: float) -> None:
    generator = np.random.default_rng(5)
    wanted, said = generator.uniform(size=80) < 0.4, generator.uniform(size=80) < 0.4
    confidences = generator.uniform(size=80)
    abstained = said | (confidences < threshold)
    score = out_of_scope_score(wanted.tolist(), said.tolist(), confidences.tolist(), threshold)
    assert score is not None
    assert score.value == pytest.approx(recall_score(wanted, abstained))
    assert score.n == wanted.sum()
    assert score.detail["precision"] == pytest.approx(precision_score(wanted, abstained))
    assert score.detail["false_abstention"] == pytest.approx(recall_score(~wanted, abstained))
    assert [outcome is None for outcome in score.outcomes] == (~wanted).tolist()


def test_without_questions_out_of_scope_there_is_nothing_to_recall() -> None:
    assert out_of_scope_score([False], [True], [None], 0.0) is None
