"""Slices by hand, and the permutation test against the exact distribution."""

import pytest
from scipy.stats import fisher_exact

from edgeft.bench.examples import Example
from edgeft.bench.scores import Score, mean_score, share_score
from edgeft.bench.slices import check_fields, slice_tables
from edgeft.errors import DataError


def example(answer: str = "a", **fields: object) -> Example:
    return Example(({"role": "user", "content": "q"},), answer, fields=fields)


def scored(outcomes: list[float | None]) -> Score:
    score = share_score("exact_match", outcomes)
    assert score is not None
    return score


def test_rows_gap_and_small_slices() -> None:
    examples = [example(room="hall")] * 12 + [example(room=["den", 1])] * 10 + [example()] * 2 + [example(room="x")]
    outcomes: list[float | None] = [1.0] * 12 + [0.0] * 8 + [1.0] * 2 + [0.0] * 2 + [None]
    (table,) = slice_tables(examples, [scored(outcomes)], ["room"])
    assert [(row["value"], row["n"], row["score"], row["small"]) for row in table["rows"]] == [
        ("(none)", 2, 0.0, True),
        ('["den", 1]', 10, 0.2, False),
        ("hall", 12, 1.0, False),
    ]
    assert (table["gap"]["best"], table["gap"]["worst"]) == ("hall", '["den", 1]')
    assert table["gap"]["gap"] == pytest.approx(0.8)


@pytest.mark.parametrize(("right_a", "right_b"), [(15, 9), (12, 11), (18, 4)])
def test_p_is_fishers_exact_test_for_two_slices_of_one_size(right_a: int, right_b: int) -> None:
    n = 20
    examples = [example(source="a")] * n + [example(source="b")] * n
    outcomes: list[float | None] = [float(i < right) for right in (right_a, right_b) for i in range(n)]
    (table,) = slice_tables(examples, [scored(outcomes)], ["source"])
    exact = fisher_exact([[right_a, n - right_a], [right_b, n - right_b]]).pvalue
    assert table["gap"]["p"] == pytest.approx(exact, abs=0.05)


def test_the_reference_is_a_field_and_means_have_bootstrap_intervals() -> None:
    score = mean_score("rouge_l", [0.5, 1.0, 0.25])
    assert score is not None
    (table,) = slice_tables([example("yes"), example("yes"), example("no")], [score], ["answer"], minimum=1)
    assert [(row["value"], row["score"]) for row in table["rows"]] == [("no", 0.25), ("yes", 0.75)]
    assert table["rows"][1]["ci95"] == pytest.approx([0.5, 1.0])


def test_a_metric_that_is_no_mean_has_no_slices() -> None:
    score = Score("perplexity", 3.0, 1, (2.0, 4.0), "bootstrap", (None,))
    assert slice_tables([example()], [score], ["answer"]) == []


def test_one_large_slice_has_no_gap() -> None:
    (table,) = slice_tables([example(room="hall")] * 10, [scored([1.0] * 10)], ["room"])
    assert table["gap"] is None


def test_an_unknown_field() -> None:
    check_fields([example(room="hall"), example()], ["room", "answer"])
    with pytest.raises(DataError, match=r"no example has a field 'rom'; fields: answer, room"):
        check_fields([example(room="hall")], ["rom"])
