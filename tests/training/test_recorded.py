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
    answered = len(answer.positions)
    start = batch.loss_count - sum(answer.mask)
    for row in range(start, start + answered):
        known = dict(zip(tokens[row].tolist(), p[row], strict=False))
        assert known[int(batch.labels[row])] == pytest.approx(0.5, rel=1e-3)
        assert known[tokenizer.convert_tokens_to_ids("!")] == pytest.approx(0.2, rel=1e-3)
        assert known[tokenizer.convert_tokens_to_ids("?")] == pytest.approx(0.1, rel=1e-3)
        assert p[row, -1] == pytest.approx(0.2, rel=1e-3)
    end = dict(zip(tokens[-1].tolist(), p[-1], strict=False))
    assert end[int(batch.labels[-1])] == pytest.approx(1.0)  # the end of the turn, of which an API says nothing


def test_another_tokenizer_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ModelError, match=r"cuts the answer 'light' into other tokens .* set distill\.teacher_api"):
        recorded_set([_answer(tokenizer, "light", {}, list("light"))], tokenizer, 4)
