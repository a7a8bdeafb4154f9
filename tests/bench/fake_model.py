"""A runtime model with scripted answers: its tokens are characters."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeft.errors import RuntimeFault


class FakeModel:
    """Answers the last message's content by looking it up in `answers`; an unknown question is a fault."""

    def __init__(self, answers: Mapping[str, str], n_ctx: int = 64) -> None:
        self.answers = answers
        self.n_ctx = n_ctx
        self.n_vocab = 0x110000
        self.n_threads = 3
        self.eos_ids = frozenset({0})
        self.metadata: dict[str, str] = {}
        self.streams: list[dict[str, Any]] = []
        self.closed = False

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        offered = f"[{len(tools)} tools]" if tools else ""
        return offered + "".join(f"{m['role'][0]}:{m['content']}\n" for m in messages) + "a:"

    def tokenize(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def detokenize(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def stream(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int = 128, ignore_eos: bool = False, **_: Any
    ) -> Iterator[int]:
        self.streams.append({"n_prompt": len(prompt_ids), "ignore_eos": ignore_eos})
        question = self.detokenize(prompt_ids).removesuffix("\na:").rsplit("\n", 1)[-1].split(":", 1)[1]
        if question not in self.answers:
            raise RuntimeFault(f"no scripted answer to {question!r}")
        answer = self.tokenize(self.answers[question])
        if ignore_eos:
            answer += [ord(".")] * max_new_tokens
        yield from answer[:max_new_tokens]

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int = 128, **options: Any) -> list[int]:
        return list(self.stream(prompt_ids, max_new_tokens=max_new_tokens, **options))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, max_new_tokens: int = 128, **_: Any) -> str:
        prompt = self.tokenize(self.render(messages))
        return self.detokenize(self.generate(prompt, max_new_tokens=max_new_tokens))

    def score(self, ids: Sequence[int]) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> "FakeModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
