"""A teacher's likely tokens as an API sent them, brought to the student's token ids.

Format: `choices[].logprobs.content[]` of OpenAI's chat completions, each with `token`, `logprob`, `bytes` and
`top_logprobs`: https://platform.openai.com/docs/api-reference/chat/object.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.training.batches import TokenSet
from edgeft.training.cache_format import LOG_TINY, Layout, Records, Shard, shard_bytes
from edgeft.training.teacher_cache import CachedSet, loss_rows

WORD_START = "▁"  # a space, as tokenizers of SentencePiece's kind write it
OTHER_TOKENS = (
    "the endpoint cuts the answer {answer!r} into other tokens than the student ({theirs!r} where the student has "
    "{ours!r}): the models have different tokenizers; set distill.teacher_api.top_logprobs: 0 to learn from the text"
)


@dataclass(frozen=True)
class RecordedAnswer:
    """An example with the teacher's answer as its last turn, `ids` and `mask` (T,), and what the API sent of each of
    the answer's tokens."""

    ids: list[int]
    mask: list[bool]
    positions: Sequence[Mapping[str, Any]]


def recorded_set(answers: Sequence[RecordedAnswer], tokenizer: Any, top_logprobs: int) -> CachedSet:
    """The examples with the distributions the API gave, at most `top_logprobs` + 1 tokens of each.

    A position the API says nothing of (the end of the turn, earlier turns) has its label for certain. A likely token
    whose text is no token of the student's, or of several, counts to the rest. Raises ModelError when an answer's
    tokens are not the student's.
    """
    texts = _texts(tokenizer)
    by_text: dict[str, int | None] = {}
    for token, text in texts.items():
        by_text[text] = None if text in by_text else token
    layout = Layout(top_logprobs + 1, "float16", max(tokenizer.get_vocab().values()) + 1)
    tokens = TokenSet.build([(answer.ids, answer.mask) for answer in answers])
    known = [row for answer in answers for row in _known_tokens(answer, texts, by_text)]
    records = _records(known, layout)
    tail = float(np.exp(records.heads["log_rest"], dtype=np.float64).mean()) if known else 0.0
    content = np.frombuffer(shard_bytes(records, layout), np.uint8)
    return CachedSet(tokens, layout, loss_rows(tokens), [(0, Shard(content, len(known), layout))], 0.0, tail)


def _known_tokens(
    answer: RecordedAnswer, texts: Mapping[int, str], by_text: Mapping[str, int | None]
) -> list[dict[int, float]]:
    """Log-probabilities by token at each loss position; the last learned turn is the recorded answer."""
    places = [at for at, learned in enumerate(answer.mask) if learned and at > 0]
    start = max((at + 1 for at in range(places[-1]) if not answer.mask[at]), default=0)
    positions = dict(enumerate(answer.positions, start))
    known = []
    for at in places:
        label, ours = answer.ids[at], texts.get(answer.ids[at])
        position = positions.get(at)
        if position is None or ours is None:  # the end of the turn, or a part of a character
            known.append({label: 0.0})
            continue
        if ours != position["token"]:
            whole = "".join(p["token"] for p in answer.positions)
            raise ModelError(OTHER_TOKENS.format(answer=whole[:60], theirs=position["token"], ours=ours))
        likely = [(by_text.get(top["token"]), float(top["logprob"])) for top in position["top_logprobs"]]
        known.append({token: log_p for token, log_p in likely if token is not None} | {label: position["logprob"]})
    return known


def _records(known: Sequence[Mapping[int, float]], layout: Layout) -> Records:
    """As the cache stores them."""
    likely = [sorted(each.items(), key=lambda pair: -pair[1])[: layout.most] for each in known]
    heads = np.zeros(len(known), layout.head)
    heads["count"] = [len(each) for each in likely]
    rest = np.array([1.0 - sum(np.exp(log_p) for _, log_p in each) for each in likely])
    heads["log_rest"] = np.log(np.maximum(rest, np.exp(LOG_TINY)))
    ids = np.array([token for each in likely for token, _ in each], np.uint32)
    return Records(heads, ids, np.array([log_p for each in likely for _, log_p in each], layout.value))


def _texts(tokenizer: Any) -> dict[int, str]:
    """What each token adds to a text; tokens that are no whole characters are left out."""
    vocabulary = tokenizer.get_vocab()
    pieces = {token: piece for piece, token in vocabulary.items()}
    if any(piece.startswith(WORD_START) for piece in vocabulary):
        return {token: piece.replace(WORD_START, " ") for token, piece in pieces.items() if not piece.startswith("<0x")}
    texts = {token: str(tokenizer.decode([token])) for token in pieces}
    return {token: text for token, text in texts.items() if "�" not in text}
