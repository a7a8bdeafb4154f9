"""Log-probabilities an API sent, as targets of a distillation."""

from typing import Any

import numpy as np
import pytest

from edgeft.data.rendering import encode_chat
from edgeft.errors import ModelError
from edgeft.training.recorded import RecordedAnswer, recorded_set
from tests.tiny import tiny_tokenizer


def _answer(tokenizer: Any, text: str, likely: dict[str, float], pieces: list[str] | None = None) -> RecordedAnswer:
    """`text` as the teacher's answer, each of its tokens with probability one half and the `likely` beside it."""
    ids, mask = encode_chat(tokenizer, [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}])
    pieces = pieces or [tokenizer.decode([i]) for i in tokenizer(text, add_special_tokens=False).input_ids]
    others = [{"token": token, "logprob": float(np.log(p))} for token, p in likely.items()]
    positions = [
        {
            "token": piece,
            "logprob": float(np.log(0.5)),
            "top_logprobs": [{"token": piece, "logprob": float(np.log(0.5))}, *others],
        }
        for piece in pieces
    ]
    return RecordedAnswer(ids, mask, positions)


def test_every_position_has_what_was_sent() -> None:
    tokenizer = tiny_tokenizer()
    answer = _answer(tokenizer, "turn on the light", {"!": 0.2, "?": 0.1, "no token at all": 0.05})
    cached = recorded_set([answer, _answer(tokenizer, "off", {})], tokenizer, 4)
    batch = cached.pack(np.array([1, 0]))
    tokens, log_p = batch.targets.outcomes(slice(None))
    assert tokens is not None
    p = log_p.exp().numpy()
    assert p.sum(-1) == pytest.approx(1.0, abs=1e-5)
    likely = [
        {token: prob for token, prob in zip(ids.tolist(), probs, strict=False) if prob} | {"rest": probs[-1]}
        for ids, probs in zip(tokens, p, strict=True)
    ]
    by_place = dict(zip(batch.loss_positions.tolist(), zip(batch.labels.tolist(), likely, strict=True), strict=True))
    first = batch.n_tokens - len(answer.ids) + answer.mask.index(True) - 1
    for place in range(first, first + len(answer.positions)):
        label, known = by_place.pop(place)
        assert known[label] == pytest.approx(0.5, rel=1e-3)
        assert known[tokenizer.convert_tokens_to_ids("!")] == pytest.approx(0.2, rel=1e-3)
        assert known[tokenizer.convert_tokens_to_ids("?")] == pytest.approx(0.1, rel=1e-3)
        assert known["rest"] == pytest.approx(0.2, rel=1e-3)
        assert len(known) == 4
    label, known = by_place.pop(first + len(answer.positions))
    assert known[label] == pytest.approx(1.0)  # the end of the turn, of which an API says nothing


def test_another_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"cuts the answer 'light' into other tokens .* set distill\.teacher_api"):
        recorded_set([_answer(tokenizer, "light", {}, list("light"))], tokenizer, 4)
