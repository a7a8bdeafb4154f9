"""Answers that the runtime will not be let finish: known when the data is prepared, long before they are given."""

import json
from collections.abc import Callable

from edgeft.artifact import Artifact
from edgeft.bench.budgets import parse_budget
from edgeft.errors import RecipeError
from edgeft.recipe import Recipe

WHOLE_ANSWERS = ("exact_match", "json_match", "json_valid", "label_accuracy", "tool_call_match")
"""Metrics by which a cut answer is wrong."""


def foresee_cut_answers(recipe: Recipe, data: Artifact, say: Callable[[str], None]) -> None:
    """Say how many test answers are longer than `bench.max_new_tokens`, from the data stage's summary.json.

    Raises RecipeError when a budget asks for more right answers than can be whole.
    """
    lengths = _lengths(data)
    total = sum(lengths.values())
    over = sum(n for length, n in lengths.items() if length > recipe.bench.max_new_tokens)
    if not over:
        return
    longest = max(lengths)
    words = (
        f"{over} of {total} test answers are longer than bench.max_new_tokens ({recipe.bench.max_new_tokens}): they "
        f"will be cut and count as wrong. The longest has {longest} tokens; set bench.max_new_tokens: {longest}"
    )
    most = (total - over) / total
    for metric, text in recipe.budgets.items():
        budget = parse_budget(metric, text)
        if metric in WHOLE_ANSWERS and not budget.factor and budget.op in (">=", ">", "==") and budget.limit > most:
            raise RecipeError(
                f"{recipe.where(f'gate.{metric}')}gate.{metric}: {text!r} cannot be met: {words}. "
                f"At most {most:.3f} can be right"
            )
    say(words)


def _lengths(data: Artifact) -> dict[int, int]:
    """{tokens of an answer, its end included: how many there are}; empty where the stage did not count them."""
    if "summary.json" not in data.files:
        return {}
    counted = json.loads(data.file("summary.json").read_bytes()).get("test", {}).get("answer_lengths", {})
    return {int(length): int(n) for length, n in counted.items()}
