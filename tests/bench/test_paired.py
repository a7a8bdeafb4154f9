"""Shares and pairs against the worked examples of the papers, and scipy."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from edgeft.bench.paired import pair, pair_accuracies, read_accuracy, same_examples
from edgeft.bench.scores import share_score
from edgeft.bench.shares import difference_interval, mcnemar_p, paired_interval, wilson_interval
from edgeft.errors import ArtifactError

# R. G. Newcombe, "Interval estimation for the difference between independent proportions: comparison of eleven
# methods", Statistics in Medicine 17 (1998) 873-890, table II, method 10.
DIFFERENCES = [
    ((56, 70), (48, 80), 0.0524, 0.3339),
    ((9, 10), (3, 10), 0.1705, 0.8090),
    ((6, 7), (2, 7), 0.0582, 0.8062),
    ((5, 56), (0, 29), -0.0381, 0.1926),
    ((0, 10), (0, 20), -0.1611, 0.2775),
    ((10, 10), (0, 20), 0.6791, 1.0),
    ((10, 10), (0, 10), 0.6075, 1.0),
]


@pytest.mark.parametrize(("a", "b", "low", "high"), DIFFERENCES)
def test_difference_published_examples(a: tuple[int, int], b: tuple[int, int], low: float, high: float) -> None:
    (x, n), (y, m) = a, b
    found = difference_interval(x / n, wilson_interval(x, n), y / m, wilson_interval(y, m))
    assert found == pytest.approx((low, high), abs=5e-5)


def test_paired_published_example() -> None:
    # Bentur et al.'s airway hyper-responsiveness before and after transplantation, in M. W. Fagerland, S. Lydersen and
    # P. Laake, "Recommended tests and confidence intervals for paired binomial proportions", Statistics in Medicine 33
    # (2014) 2850-2875: Newcombe's interval and the exact conditional test.
    assert paired_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)
    assert mcnemar_p(1, 7) == pytest.approx(0.0703, abs=5e-5)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (0, 6), (3, 3), (5, 12), (40, 80)])
def test_mcnemar_equals_the_exact_binomial_test(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar_p(only_a, only_b) == pytest.approx(expected, rel=1e-12)
    assert mcnemar_p(only_a, only_b) == mcnemar_p(only_b, only_a)


def test_pair_counts_what_both_count() -> None:
    a = [1, 1, 1, 1, 1, 1, 1, None, 0, 1]
    b = [1, 0, 0, 0, 0, 0, 0, 1, 0, None]
    found = pair("exact_match", a, b)
    assert found is not None
    assert (found.n, found.both, found.only_a, found.only_b, found.neither) == (8, 1, 6, 0, 1)
    assert found.difference == pytest.approx(6 / 8)
    assert found.p == pytest.approx(2 / 2**6)
    assert found.outcome == "better"
    turned = pair("exact_match", b, a)
    assert turned is not None
    assert turned.outcome == "worse"
    assert turned.ci95 == pytest.approx((-found.ci95[1], -found.ci95[0]))


@pytest.mark.parametrize(("a", "b"), [([], []), ([None, 1], [1, None]), ([0.5, 1], [1, 1])])
def test_nothing_to_pair(a: list[float | None], b: list[float | None]) -> None:
    assert pair("exact_match", a, b) is None


def test_a_small_difference_shows_nothing() -> None:
    found = pair("exact_match", [1] * 50 + [0, 0], [1] * 48 + [0, 0, 0, 0])
    assert found is not None
    assert found.outcome == "no difference shown"


def accuracy(*outcomes: float, digest: str = "ab", metric: str = "exact_match") -> dict[str, Any]:
    score = share_score(metric, outcomes)
    assert score is not None
    return {"scores": [score.to_json()], "examples_sha256": digest}


def test_accuracies_pair_on_the_same_examples_only() -> None:
    one, other = accuracy(1, 1, 0), accuracy(1, 0, 0)
    assert [row.to_json()["only_a"] for row in pair_accuracies(one, other)] == [1]
    assert pair_accuracies(one, accuracy(1, 0, 0, digest="cd")) == []
    assert pair_accuracies(one, accuracy(1, 0, 0, metric="json_valid")) == []
    assert not same_examples({}, {})


def test_earlier_answers_are_read_from_every_file_that_has_them(tmp_path: Path) -> None:
    one, path = accuracy(1, 1, 0), tmp_path / "bench.json"
    path.write_text(json.dumps({"accuracy": one}))
    assert pair_accuracies(one, read_accuracy(path))[0].both == 2
    path.write_text(json.dumps({"forms": [accuracy(0, 0, 0) | {"form": "classical"}, one | {"form": "merged"}]}))
    assert pair_accuracies(one, read_accuracy(path))[0].both == 2
    rows = [{"reference": str(i), "outcomes": {"exact_match": i % 2, "rouge_l": 0.5}} for i in range(3)]
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    earlier = read_accuracy(tmp_path / "predictions.jsonl")
    (found,) = pair_accuracies(one | {"references": ["0", "1", "2"]}, earlier)
    assert (found.both, found.only_a, found.neither) == (1, 1, 1)
    assert pair_accuracies(one | {"references": ["0", "1", "3"]}, earlier) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "oops"),
        ("a.json", "{}"),
        ("a.json", "[]"),
        ("a.json", '{"accuracy": {"scores": []}}'),
        ("a.json", '{"forms": [{"form": "classical", "scores": [1]}]}'),
        ("a.jsonl", ""),
        ("a.jsonl", '{"reference": "a"}'),
        ("a.jsonl", "3"),
    ],
)
def test_a_file_without_answers(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactError, match=f"{name}: no answers in it; give a bench.json"):
        read_accuracy(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no.json: cannot be read \(No such file"):
        read_accuracy(tmp_path / "no.json")
