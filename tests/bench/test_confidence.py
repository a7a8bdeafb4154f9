"""Confidence of wrong answers against that of a whole evaluation."""

from pathlib import Path

import pytest

from edgeft.bench.accuracy import Scoring
from edgeft.bench.answers import evaluate_file
from edgeft.bench.backends import Setup
from edgeft.bench.confidence import predictions_with_confidence
from edgeft.bench.examples import Example
from edgeft.console import silent_log
from tests.lively import make_lively_llama

SETUP = Setup(n_ctx=256, n_threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeft.export.gguf import write_gguf

    folder = tmp_path_factory.mktemp("confidence")
    source = make_lively_llama(folder / "model", max_position_embeddings=1024)
    write_gguf(source, folder / "m.gguf", ftype="F32", name="m", provenance={}, log=silent_log())
    return folder / "m.gguf"


def asked(n: int) -> list[Example]:
    return [Example(({"role": "user", "content": f"question {i}"},), f"answer {i}") for i in range(n)]


def test_wrong_answers_have_the_confidence_of_a_whole_evaluation(model: Path) -> None:
    examples = asked(5)
    with_all = evaluate_file(
        model, examples, Scoring(("exact_match", "ece")), SETUP, max_new_tokens=6, log=silent_log()
    )
    examples[2] = Example(examples[2].prompt, with_all.answers[2].text)  # the one that is right
    plain = evaluate_file(model, examples, Scoring(("exact_match",)), SETUP, max_new_tokens=6, log=silent_log())
    assert plain.values()["exact_match"] == pytest.approx(0.2)
    rows = predictions_with_confidence(model, plain, examples, SETUP, max_new_tokens=6, log=silent_log())
    expected = [row["log_prob"] for row in with_all.predictions()]
    assert [row.get("log_prob") for row in rows] == [
        pytest.approx(log_prob, abs=1e-4) if index != 2 else None for index, log_prob in enumerate(expected)
    ]
    assert [{**row, "log_prob": 0} for row in rows] == [{**row, "log_prob": 0} for row in plain.predictions()]


def test_a_runtime_that_fails_costs_the_confidence_alone(model: Path, tmp_path: Path) -> None:
    examples = asked(2)
    plain = evaluate_file(model, examples, Scoring(("exact_match",)), SETUP, max_new_tokens=6, log=silent_log())
    gone = tmp_path / "gone.gguf"
    gone.write_bytes(model.read_bytes()[:2000])
    said: list[str] = []

    class Log:
        def say(self, text: str) -> None:
            said.append(text)

        progress = staticmethod(silent_log().progress)

    rows = predictions_with_confidence(gone, plain, examples, SETUP, max_new_tokens=6, log=Log())
    assert rows == plain.predictions()
    assert "how sure it was of its wrong answers is not known" in said[0]
