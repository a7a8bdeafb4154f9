"""Prompts that become other text or other ids in a runtime than in the model folder its file was made from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from edgeft.conversation.renderer import renderer_of
from edgeft.parity.bisect_metadata import first_difference
from edgeft.parity.finding import Finding
from edgeft.parity.forms import Prompt
from edgeft.runtime.model import Message


class Vocabulary(Protocol):
    """Either runtime's; see `edgeft.runtime.Model`."""

    def render(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, Any]] | None = None) -> str: ...

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]: ...

    def token_text(self, token: int) -> str: ...


def prompt_findings(
    tokenizer: Any,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    sequences: list[list[int]],
    *,
    runtime: str,
    template: str,
) -> Iterator[Finding]:
    """Prompts that render to other text or other ids; `sequences` gets transformers' ids of each.

    `runtime` and `template` are what the vocabulary's runtime and its chat template are called. Of a model without a
    template the plain texts are compared, with the special tokens around them.
    """
    for prompt in prompts:
        special = not tokenizer.chat_template
        here = there = prompt.text
        if not special:
            there = renderer_of(tokenizer).render(prompt.messages, prompt.tools, add_generation_prompt=True)
            here = vocabulary.render(prompt.messages, tools=prompt.tools)
        if here != there:
            message = f"{prompt.text!r} renders to {here!r} in {runtime}, to {there!r} in transformers"
            yield Finding("template", template, message)
        theirs = tokenizer(there, add_special_tokens=special)["input_ids"]
        ours = vocabulary.tokenize(here, add_special=special)
        if ours != theirs:
            yield token_finding(tokenizer, vocabulary, runtime, there, ours, theirs)
        sequences.append(theirs)


def token_finding(
    tokenizer: Any, vocabulary: Vocabulary, runtime: str, text: str, ours: Sequence[int], theirs: Sequence[int]
) -> Finding:
    """The first token of `text` in which the runtime's ids are not transformers'."""
    at = first_difference(ours, theirs)
    there = str(tokenizer.convert_ids_to_tokens(theirs[at])) if at < len(theirs) else ""
    here = f"{ours[at]} ({vocabulary.token_text(ours[at])!r})" if at < len(ours) else "missing"
    wanted = f"{theirs[at]} ({there!r})" if there else "nothing more"
    return Finding("token", there, f"token {at} of {text!r} is {here} in {runtime}, {wanted} in transformers")
