"""Lengths under the recipe's own tokenizer and chat template, on an even sample of each file."""

import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edgeft.console import Log
from edgeft.data import formats, reading
from edgeft.data.rendering import ChatTokenizer, LeftOut, NoEndToken, Refused, encode_chat
from edgeft.data.tokenizing import recipe_tokenizer
from edgeft.errors import DataError, EdgeftError

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked, FileSummary
    from edgeft.recipe import Recipe

SAMPLE_EXAMPLES = 5000


def check_tokens(recipe: "Recipe", checked: "Checked", log: Log) -> None:
    """Add findings W601, E602, E603, W604, E605, E606 and the token numbers of each file to `checked`."""
    tokenizer = recipe_tokenizer(recipe)
    for summary in checked.files:
        count_tokens(tokenizer, recipe.data.max_length, summary, checked, log)


def count_tokens(
    tokenizer: ChatTokenizer, max_length: int, summary: "FileSummary", checked: "Checked", log: Log
) -> None:
    """Encode up to SAMPLE_EXAMPLES examples of one file, every n-th of them."""
    every = max(1, -(-summary.n_examples // SAMPLE_EXAMPLES))
    lengths: list[int] = []
    n_loss = 0
    count: Counter[str] = Counter()
    total = summary.n_examples // every
    with log.progress(f"tokenize {summary.path.name}", total, "examples") as progress:
        for line, example in _sampled(summary, every):
            problem, ids, mask = _encode(tokenizer, example)
            if problem is not None:
                checked.add(*_finding(problem, summary.path, line))
                continue
            lengths.append(len(ids))
            n_loss += sum(mask)
            if len(ids) > max_length:
                code = "W601" if any(mask[:max_length]) else "W604"
                count[code] += 1
                checked.add(code, summary.path, line, f"{len(ids)} tokens, max_length is {max_length}")
            if len(lengths) % 100 == 0:
                progress.update(len(lengths))
    if lengths:
        longest = sorted(lengths)
        summary.tokens = {
            "sampled": len(lengths),
            "every": every,
            "mean": statistics.fmean(lengths),
            "p50": longest[len(longest) // 2],
            "p95": longest[int(0.95 * (len(longest) - 1))],
            "longest": longest[-1],
            "loss_share": n_loss / max(1, sum(lengths)),
            "truncation_share": count.total() / len(lengths),
            "max_length": max_length,
            "histogram": dict(sorted(Counter(1 << (n - 1).bit_length() if n > 1 else 1 for n in lengths).items())),
        }


def _sampled(summary: "FileSummary", every: int) -> Iterator[tuple[int, formats.Example]]:
    examples = reading.read_examples(summary.path, summary.format, encoding=summary.encoding).examples
    return (pair for number, pair in enumerate(examples) if number % every == 0)


def _encode(tokenizer: ChatTokenizer, example: formats.Example) -> tuple[Exception | None, list[int], list[bool]]:
    """Templates are programs of other people: whatever they raise is a finding, not our fault."""
    try:
        return None, *encode_chat(tokenizer, example["messages"], example.get("tools"))
    except Exception as error:
        return error, [], []


def _finding(problem: Exception, path: Path, line: int) -> tuple[str, Path, int, str]:
    refused = not isinstance(problem, DataError) or isinstance(problem, Refused)
    codes: dict[type[Exception], str] = {LeftOut: "E605", NoEndToken: "E606"}
    code = codes.get(type(problem), "E602" if refused else "E603")
    text = str(problem) if isinstance(problem, EdgeftError) else f"{type(problem).__name__}: {problem}"
    return code, path, line, text.splitlines()[0][:160] if text else ""
