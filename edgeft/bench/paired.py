"""Two models on the same examples: are the answers of one really better, or did a few examples fall its way?

Works on scores as bench.json and baseline.json hold them. Standard library only, see `shares`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft.bench.shares import mcnemar_p, paired_interval
from edgeft.errors import ArtifactError

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Paired:
    """One yes-or-no metric of models a and b over the `n` examples it counts for both.

    `only_a` counts the examples that only a got right, and so on; `difference` is a's share minus b's with its 95 %
    interval (Newcombe's), `p` the exact p-value of McNemar's test.
    """

    metric: str
    n: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    ci95: tuple[float, float]
    p: float

    @property
    def outcome(self) -> str:
        """`better`, `worse` or `no difference shown`, of a against b."""
        if self.p >= SIGNIFICANT:
            return "no difference shown"
        return "better" if self.difference > 0 else "worse"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a JSON file."""
        return {**asdict(self), "ci95": list(self.ci95), "outcome": self.outcome}


def pair(metric: str, a: Sequence[float | None], b: Sequence[float | None]) -> Paired | None:
    """Compare outcomes (n,) of two models, example by example; None where either does not count.

    Returns None when an outcome is neither 0 nor 1 (McNemar's test knows no half-right answers) or nothing counts.
    Raises ValueError when the two are not of the same length.
    """
    counted = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    if not counted or any(value not in (0, 1) for both in counted for value in both):
        return None
    both, only_a, only_b, neither = (counted.count(each) for each in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return Paired(
        metric=metric,
        n=len(counted),
        both=both,
        only_a=only_a,
        only_b=only_b,
        neither=neither,
        difference=(only_a - only_b) / len(counted),
        ci95=paired_interval(both, only_a, only_b, neither),
        p=mcnemar_p(only_a, only_b),
    )


def pair_accuracies(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Paired]:
    """Every yes-or-no metric that two accuracies (`accuracy` of a bench.json, a form of a baseline.json) share.

    Empty when they are not over the same examples. Where a time limit left some out, those that both scored count.
    """
    return list(_paired(a, b)) if same_examples(a, b) else []


def same_examples(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether both were asked the same examples, in the same order, as `examples_sha256` says, or the
    `references` where one of them does not know more."""
    name = "examples_sha256" if a.get("examples_sha256") and b.get("examples_sha256") else "references"
    return bool(a.get(name)) and a.get(name) == b.get(name)


def common_outcomes(
    a: tuple[Mapping[str, Any], Mapping[str, Any]], b: tuple[Mapping[str, Any], Mapping[str, Any]]
) -> tuple[list[float | None], list[float | None]]:
    """Outcomes of both (accuracy, one of its scores) for the examples that both scored, in the order of the test set.

    Raises ValueError when both scored all and these are not equally many.
    """
    first, second = a[1]["outcomes"], b[1]["outcomes"]
    if a[0].get("scored") is None and b[0].get("scored") is None:
        if len(first) != len(second):
            raise ValueError(f"{len(first)} and {len(second)} outcomes")
        return list(first), list(second)
    of_first = dict(zip(a[0].get("scored") or range(len(first)), first, strict=True))
    of_second = dict(zip(b[0].get("scored") or range(len(second)), second, strict=True))
    places = [place for place in sorted(of_first) if place in of_second]
    return [of_first[place] for place in places], [of_second[place] for place in places]


def read_accuracy(path: Path) -> dict[str, Any]:
    """The accuracy in a bench.json, of the fine-tuned model in a baseline.json, or behind a predictions.jsonl.

    Raises ArtifactError when the file cannot be read or is none of these.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return _of_predictions([json.loads(line) for line in text.splitlines()])
        content = json.loads(text)
        accuracies = [content["accuracy"]] if "accuracy" in content else content["forms"]
        return next(each for each in accuracies if each["scores"] and each.get("form", "merged") == "merged")
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); give a bench.json of edgeft") from None
    except (ValueError, KeyError, TypeError, IndexError, StopIteration):
        raise ArtifactError(f"{path}: no answers in it; give a bench.json or predictions.jsonl of edgeft") from None


def _of_predictions(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The scores that have an outcome for every example."""
    scores = [
        {"metric": name, "interval": "wilson", "outcomes": [row["outcomes"][name] for row in rows]}
        for name in rows[0]["outcomes"]
    ]
    return {"scores": scores, "references": [row["reference"] for row in rows]}


def _paired(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Paired]:
    others = {score["metric"]: score for score in b["scores"]}
    for score in a["scores"]:
        other = others.get(score["metric"])
        if other is None or score["interval"] != "wilson":  # a mean of yes-or-no outcomes
            continue
        paired = pair(score["metric"], *common_outcomes((a, score), (b, other)))
        if paired is not None:
            yield paired
