"""How sure a model was of its wrong answers, where nothing else asks how likely answers are.

Asking it of every answer would double the work of a benchmark; of the wrong ones it takes a second or two.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench.accuracy import TOO_LONG, Evaluation, Scoring
from edgeft.bench.answers import evaluate_file
from edgeft.bench.backends import Setup
from edgeft.bench.examples import Example
from edgeft.errors import EdgeftError

if TYPE_CHECKING:
    from edgeft.console import Log

MOST = 60
"""Wrong answers that are asked again; the report shows fewer, the surest first."""
ASKS = Scoring(metrics=("ece",))
"""What makes the runtime say how likely its answers are."""


def predictions_with_confidence(
    path: Path,
    evaluation: Evaluation,
    examples: Sequence[Example],
    setup: Setup,
    *,
    max_new_tokens: int,
    log: "Log",
) -> list[dict[str, Any]]:
    """The evaluation's predictions, with `log_prob` of those that are wrong by the first metric that tells right from
    wrong: of the first MOST of them, each answered again. As they are where probabilities are known, or where the
    runtime cannot say them."""
    rows = evaluation.predictions()
    if any("log_prob" in row for row in rows):
        return rows
    outcomes = next((score.outcomes for score in evaluation.scores if score.interval == "wilson"), None)
    right = outcomes or tuple(float(row["text"].strip() == row["reference"].strip()) for row in rows)
    wrong = [index for index, outcome in enumerate(right) if outcome == 0 and rows[index]["finish"] != TOO_LONG][:MOST]
    if not wrong:
        return rows
    chosen = [examples[index] for index in wrong]
    try:
        again = evaluate_file(path, chosen, ASKS, setup, max_new_tokens=max_new_tokens, log=log)
    except EdgeftError as error:  # an answer to "how sure?" is worth no run
        log.say(f"{path.name}: how sure it was of its wrong answers is not known ({str(error).splitlines()[0]})")
        return rows
    for index, answer in zip(wrong, again.answers, strict=True):
        if answer.text == rows[index]["text"] and answer.log_prob is not None:
            rows[index]["log_prob"] = answer.log_prob
    return rows
