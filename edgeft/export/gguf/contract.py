"""The chat template's contract: a conversation becomes the same ids in transformers and from the file alone.

Three readers are compared on a suite of conversations: the folder's template and tokenizer, as transformers uses
them; the file's template in our runtime; and the file as llama.cpp's server tokenizes a rendered prompt, where
the BOS of the vocabulary and that of the template must not add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.errors import ModelError
from edgeft.export.gguf.tokenizers.special import Ends
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from edgeft.runtime.template import ChatTemplate

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = Mapping[str, Any]
SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Conversation:
    """Messages, and tools the answer may call."""

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None


def _said(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """A conversation in which user and assistant take turns."""
    roles = ("user", "assistant")
    turns = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


LIGHTS = {
    "type": "function",
    "function": {
        "name": "set_light",
        "description": "Turn a light on or off, in “any” room.",
        "parameters": {
            "type": "object",
            "properties": {"room": {"type": "string"}, "level": {"type": "integer", "minimum": 0}},
            "required": ["room"],
        },
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "set_light", "arguments": {"room": "Küche"}}}

CONVERSATIONS = (
    Conversation("one question", _said("What is the time?")),
    Conversation("system and question", _said("Hi!", system="Be brief.")),
    Conversation("empty system", _said("Hi!", system="")),
    Conversation("several turns", _said("One?", "1.", "And two?", "2.", "Three?", system="You count.")),
    Conversation("ends with the answer", _said("Ping", "Pong")),
    Conversation("unicode", _said("Grüß dich, 世界! 👩‍👩‍👧 e\u0301 مرحبا", "नमस्ते — “ça va”?", "Да.")),
    Conversation("white space", _said("  two spaces \n\n\tand a tab\r\n", " answer ", "\n")),
    Conversation("looks like markup", _said("{{ x }} {% if y %} <s> </s> <b>&amp;</b> [INST] ### \\n 'a' \"b\"")),
    Conversation("code", _said("def f(x):\n    return x ** 2  # ²\n", '```py\nf(3)\n```\n{"a": [1, 2.5, null]}', "ok")),
    Conversation("empty question", _said("")),
    Conversation("tools", _said("Light in the kitchen, please.", system="Use tools."), [LIGHTS]),
    Conversation("tools without system", _said("Light!"), [LIGHTS]),
    Conversation(
        "a call and its result",
        [
            *_said("Light in the kitchen, please."),
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "name": "set_light", "tool_call_id": "call00001", "content": '{"ok": true}'},
        ],
        [LIGHTS],
    ),
)


def verify_contract(
    path: Path, template: ChatTemplate, ends: Ends, tokenizer: "Tokenizer", vocabulary: LlamaVocabulary
) -> None:
    """Compare all conversations, with and without the beginning of an answer.

    `template`, `ends` and `tokenizer` are those of the model folder `path`. A conversation that the template
    refuses is equal when every reader refuses it. Raises ModelError that names the first conversation that
    differs and where, or when the template takes none of them.
    """
    readers = _Readers(path, ends, tokenizer, vocabulary)
    accepted = 0
    for conversation in CONVERSATIONS:
        for prompt in (False, True):
            theirs = _rendered(template, conversation, prompt)
            ours = _rendered(vocabulary, conversation, prompt)
            readers.compare(conversation.name, theirs, ours)
            accepted += theirs is not None
    if not accepted:
        raise ModelError(f"{path}: the chat template takes no conversation at all; mend it")


class _Readers:
    """The folder's tokenizer and the file's vocabulary, asked for the ids of a rendered conversation."""

    def __init__(self, path: Path, ends: Ends, tokenizer: "Tokenizer", vocabulary: LlamaVocabulary) -> None:
        self.path, self.ends, self.tokenizer, self.vocabulary = path, ends, tokenizer, vocabulary
        self.begin = "" if ends.begin is None else str(tokenizer.id_to_token(ends.begin))

    def compare(self, name: str, theirs: str | None, ours: str | None) -> None:
        if theirs != ours:
            self.fail(name, f"the file's template renders it otherwise: {_difference(ours, theirs)}")
        if theirs is None or self.vocabulary.unwritable(theirs):
            return
        ids = self.tokenizer.encode(theirs, add_special_tokens=False).ids
        if self.begin and ids[:2] == [self.ends.begin] * 2:
            self.fail(name, f"the template begins with {self.begin!r} twice; remove one")
        if ids != self.vocabulary.tokenize(theirs):
            self.fail(name, f"llama.cpp tokenizes {theirs!r} otherwise than transformers")
        # llama.cpp's server leaves a rendered BOS to the vocabulary that adds one (common/chat.cpp).
        served = theirs.removeprefix(self.begin) if self.ends.adds_begin else theirs
        if ids != self.vocabulary.tokenize(served, add_special=True):
            self.fail(name, f"llama.cpp's server would put other tokens around {theirs!r}")

    def fail(self, name: str, what: str) -> None:
        raise ModelError(f"{self.path}: chat template, conversation {name!r}: {what}")


def _rendered(template: Any, conversation: Conversation, prompt: bool) -> str | None:
    """The text of a conversation; None where the template refuses it."""
    try:
        text: str = template.render(conversation.messages, tools=conversation.tools, add_generation_prompt=prompt)
    except ModelError:
        return None
    return text


def _difference(ours: str | None, theirs: str | None) -> str:
    if ours is None or theirs is None:
        return "only the file's template refuses it" if ours is None else "only the folder's template refuses it"
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    window = slice(max(0, at - SHOWN_CHARACTERS), at + SHOWN_CHARACTERS)
    return f"{ours[window]!r} at character {at}, not {theirs[window]!r}"
