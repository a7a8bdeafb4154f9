"""The same prompts through every form of a model, one form in memory at a time.

The first form is the reference. It answers each prompt greedily; every form then sees prompt and answer
(teacher forcing), so that all are compared on the same tokens however their own answers go.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import DataError, ParityFailed
from edgeft.parity.cases import Case, Taken
from edgeft.parity.checks import find_problems
from edgeft.parity.distance import distance
from edgeft.parity.forms import Form, FormSource, Prompt
from edgeft.parity.table import render_table


def compare_forms(
    sources: Sequence[FormSource],
    prompts: Sequence[Prompt],
    *,
    n_gen: int,
    limits: Mapping[str, Mapping[str, float]],
    log: Log,
) -> dict[str, Any]:
    """Compare every form with the first one, and with the one before it; the content of parity.json.

    `limits` gives `top1` (least share) and `kl_mean` (most nats) for each family of forms. Prompts that leave
    no room for `n_gen` tokens in the model's context are left out. Raises DataError when that leaves none,
    and what the forms raise when they cannot be opened.
    """
    taken: list[Taken] = []
    rows: list[dict[str, Any]] = []
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="edgeft-parity-") as temporary:
        for number, source in enumerate(sources):
            longest = max((len(case.ids) for case in cases), default=-n_gen)
            with source.open(longest + n_gen) as form:
                cases = cases or _ask(form, prompts, n_gen)
                folder = Path(temporary) / str(number)
                alike = not taken or taken[0].traits.n_vocab == form.traits.n_vocab
                taken.append(_take(source.name, form, cases, n_gen, folder, log, alike=alike))
            rows.append(_row(cases, taken, limits))
    bad = next((row for row in rows if not row["ok"]), None)
    return {
        "reference": sources[0].name,
        "prompts": len(cases),
        "skipped_prompts": len(prompts) - len(cases),
        "n_gen": n_gen,
        "positions": sum(case.n_rows for case in cases),
        "tolerance": {family: dict(values) for family, values in limits.items()},
        "rows": rows,
        "first_bad": f"{bad['form']}: {bad['problems'][0]['message']}" if bad else None,
    }


def raise_if_bad(parity: Mapping[str, Any]) -> None:
    """Raise ParityFailed, with the table, when a form is beyond tolerance."""
    if parity["first_bad"]:
        raise ParityFailed(f"not the model that was trained\n{render_table(parity)}")


def _ask(reference: Form, prompts: Sequence[Prompt], n_gen: int) -> list[Case]:
    n_ctx = reference.traits.n_ctx
    asked = [(prompt, reference.prompt_ids(prompt)) for prompt in prompts]
    fitting = [(prompt, ids) for prompt, ids in asked if len(ids) + n_gen <= n_ctx]
    if not fitting:
        raise DataError(f"no prompt leaves room for {n_gen} tokens in the context of {n_ctx}; lower parity.n_gen")
    answers = reference.answers([ids for _, ids in fitting], n_gen)
    return [Case(prompt, ids, answer, n_gen) for (prompt, ids), answer in zip(fitting, answers, strict=True)]


def _take(name: str, form: Form, cases: Sequence[Case], n_gen: int, folder: Path, log: Log, *, alike: bool) -> Taken:
    """Ask `form` for everything, or only for prompts when its vocabulary is not `alike`."""
    folder.mkdir()
    prompt_ids = [form.prompt_ids(case.prompt) for case in cases]
    if not alike:
        return Taken(name, form.traits, prompt_ids, [], folder)
    answers = form.answers([case.ids for case in cases], n_gen)
    taken = Taken(name, form.traits, prompt_ids, answers, folder)
    with log.progress(f"parity: {name}", len(cases), "prompts") as progress:
        for index, case in enumerate(cases):
            taken.keep_logits(index, form.logits(case.scored, case.n_rows))
            progress.update(index + 1)
    return taken


def _row(cases: Sequence[Case], taken: Sequence[Taken], limits: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The last form's row: its numbers against the reference, against the form before, and its problems."""
    reference, form = taken[0], taken[-1]
    n_vocab = reference.traits.n_vocab
    found = distance(cases, reference, form) if form.traits.n_vocab == n_vocab else None
    problems = find_problems(cases, reference, form, found, limits[form.traits.family])
    row: dict[str, Any] = {
        "form": form.name,
        "family": form.traits.family,
        "ok": not problems,
        **(found.to_json() if found else {}),
        "previous": None,
        "problems": [dataclasses.asdict(problem) for problem in problems],
    }
    if found and len(taken) > 1 and taken[-2].traits.n_vocab == n_vocab:
        row["previous"] = {"form": taken[-2].name, **distance(cases, taken[-2], form).to_json()}
    return row
