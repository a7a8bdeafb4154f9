"""What may be wrong with a form, checked in the order in which it explains most."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgeft.parity.cases import Case, Taken
from edgeft.parity.distance import Distance

SHOWN_CHARACTERS, SHOWN_IDS = 40, 6


@dataclass(frozen=True)
class Problem:
    """One failed check. `prompt` is the number of the prompt that shows it, where one does."""

    check: str
    message: str
    prompt: int | None = None


def find_problems(
    cases: Sequence[Case],
    reference: Taken,
    form: Taken,
    distance: Distance | None,
    limits: Mapping[str, float],
) -> list[Problem]:
    """Every failed check of `form`. `distance` None: the logits could not be compared."""
    return [
        *_bos(cases, form),
        *_prompt_ids(cases, form),
        *_stops(cases, reference, form),
        *(_distance(cases, distance, limits) if distance else _vocabulary(reference, form)),
    ]


def _bos(cases: Sequence[Case], form: Taken) -> Iterator[Problem]:
    bos = form.traits.bos_id
    for index, (case, ids) in enumerate(zip(cases, form.prompt_ids, strict=True)):
        if bos is not None and ids[:2] == [bos, bos]:
            yield Problem("bos", f"prompt {index} ({_shown(case)}) begins with two BOS tokens ({bos})", index)
            return


def _prompt_ids(cases: Sequence[Case], form: Taken) -> Iterator[Problem]:
    wrong = [i for i, case in enumerate(cases) if form.prompt_ids[i] != case.ids]
    if wrong:
        case, ids = cases[wrong[0]], form.prompt_ids[wrong[0]]
        pairs = zip([*case.ids, None], [*ids, None], strict=False)
        at = next(i for i, (ours, theirs) in enumerate(pairs) if ours != theirs)
        yield Problem(
            "prompt_ids",
            f"{len(wrong)} of {len(cases)} prompts have other token ids; prompt {wrong[0]} ({_shown(case)}) from "
            f"token {at}: {ids[at : at + SHOWN_IDS]}, the reference {case.ids[at : at + SHOWN_IDS]}",
            wrong[0],
        )


def _stops(cases: Sequence[Case], reference: Taken, form: Taken) -> Iterator[Problem]:
    ours, theirs = reference.traits, form.traits
    if theirs.eos_id != ours.eos_id:
        yield Problem("eos", f"the end token is {theirs.eos_id}, the reference's {ours.eos_id}")
    if missing := sorted(ours.stop_ids - theirs.stop_ids):
        yield Problem("stop", f"the tokens {missing} do not end an answer, as they do in the reference")
    if wrong := sorted(theirs.stop_ids - ours.stop_ids - ours.special_ids):
        yield Problem("stop", f"the ordinary tokens {wrong} end an answer")
    for index, (case, answer) in enumerate(zip(cases, form.answers, strict=False)):
        if not ours.stop_ids.isdisjoint(answer):
            yield Problem("stop", f"the answer to prompt {index} ({_shown(case)}) runs past the end token", index)
            return


def _vocabulary(reference: Taken, form: Taken) -> Iterator[Problem]:
    ours, theirs = reference.traits.n_vocab, form.traits.n_vocab
    yield Problem("vocabulary", f"{theirs} tokens in the vocabulary, the reference has {ours}")


def _distance(cases: Sequence[Case], found: Distance, limits: Mapping[str, float]) -> Iterator[Problem]:
    # Written so that NaN fails.
    if not found.kl_mean <= limits["kl_mean"]:
        where = f"most on prompt {found.worst_kl} ({_shown(cases[found.worst_kl])})"
        message = f"kl_mean {found.kl_mean:.3g} nats, limit {limits['kl_mean']:g}; {where}"
        yield Problem("kl_mean", message, found.worst_kl)
    if not found.top1_agreement >= limits["top1"]:
        where = f"least on prompt {found.worst_top1} ({_shown(cases[found.worst_top1])})"
        message = f"top1_agreement {found.top1_agreement:.3f}, limit {limits['top1']:g}; {where}"
        yield Problem("top1_agreement", message, found.worst_top1)


def _shown(case: Case) -> str:
    text = case.prompt.text
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
