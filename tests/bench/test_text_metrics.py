"""ROUGE-L against Lin's worked example and the textbook table; final numbers against GSM8K's own rule."""

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeft.bench.metrics import score_texts
from edgeft.bench.text_metrics import common_subsequence, final_number, rouge_l

LIN_REFERENCE = "police killed the gunman"


@pytest.mark.parametrize(
    ("candidate", "f1"),
    [
        # C.-Y. Lin (2004), section 3.1: S2 and S3 against S1, and S4 that ROUGE-L does not tell from S3.
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("the gunman police killed", 2 / 4),
        ("Police killed the gunman.", 1.0),
        ("", 0.0),
        ("the gunman", 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
    ],
)
def test_rouge_l_worked_example(candidate: str, f1: float) -> None:
    assert rouge_l(candidate, LIN_REFERENCE) == pytest.approx(f1, abs=1e-12)
    (score,) = score_texts(["rouge_l"], [candidate, LIN_REFERENCE], [LIN_REFERENCE] * 2)
    assert score.value == pytest.approx((f1 + 1) / 2)
    assert score.interval == "bootstrap"


def test_rouge_l_equals_googles_package() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="comes with edgeft[lm-eval]")
    texts = ["Police kill the gunman, twice.", "the gunman was killed by police in 2 minutes", "a b a c a b", "b a b"]
    for reference in texts:
        for text in texts:
            expected = scorer.RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure
            assert rouge_l(text, reference) == pytest.approx(expected, abs=1e-12)


def test_two_texts_without_words_are_equal() -> None:
    assert rouge_l("...", "") == 1.0


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.sampled_from("abcd"), max_size=30))
def test_common_subsequence_equals_the_textbook_table(a: list[str], b: list[str]) -> None:
    # T. H. Cormen et al., "Introduction to Algorithms", section 15.4.
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            table[i][j] = table[i - 1][j - 1] + 1 if x == y else max(table[i - 1][j], table[i][j - 1])
    assert common_subsequence(a, b) == table[-1][-1]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n9 * 2 = $<<9*2=18>>18\n#### 18", 18),
        ("#### 1,234 dollars, of 99", 1234),
        ("#### -7", -7),
        ("#### $5.50", Decimal("5.5")),
        ("The answer is 42.", 42),
        ("She has 3 apples and 42.0", 42),
        ("5-3", 3),
        ("it is -3", -3),
        ("it is −3 °C", -3),
        ("50%", 50),
        (".5", Decimal("0.5")),
        ("about 1,000,000 people", 1_000_000),
        ("no number, x1 neither", None),
        ("", None),
        ("5 and then ####", None),
    ],
)
def test_final_number(text: str, number: Decimal | int | None) -> None:
    assert final_number(text) == number


def test_numeric_answers_by_hand() -> None:
    references = ["so #### 18", "so #### 1,000", "no sum", "#### 3"]
    predictions = ["It makes 18.0 dollars", "#### 100", "5", "none"]
    (score,) = score_texts(["numeric_answer"], predictions, references)
    assert (score.value, score.n, score.outcomes) == (1 / 3, 3, (1.0, 0.0, None, 0.0))


@pytest.mark.shared
def test_final_number_is_gsm8ks_own(shared: Path) -> None:
    # extract_answer of openai/grade-school-math, dataset.py.
    own = re.compile(r"#### (\-?[0-9\.\,]+)")
    answers = [json.loads(line)["answer"] for line in (shared / "data/gsm8k/test.jsonl").open()]
    for text in answers:
        found = own.search(text)
        assert found is not None
        assert final_number(text) == Decimal(found[1].replace(",", ""))
    assert len(answers) == 1319
