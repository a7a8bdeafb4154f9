"""A chat template with conversations of any form: what form it wants, and what of them it leaves out.

Both are found by asking the template: words that stand nowhere else are rendered and looked for in the text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from edgeft.conversation.canonical import canonical_messages, canonical_tools, decode_arguments
from edgeft.conversation.fields import Shape, lost_places, shape_of, with_marks

Messages = list[dict[str, Any]]
Render = Callable[[Messages, list[Any] | None, bool], str]
"""The bare template: messages, tools, and whether the beginning of an answer is added. May raise anything."""

QUESTION, ANSWER = {"role": "user", "content": "zqask"}, {"role": "assistant", "content": "zqans"}
NAME, KEY, VALUE = "zqname", "zqkey", "zqval"
PROBED_TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "zqdo",
        "parameters": {"type": "object", "properties": {KEY: {"type": "string"}}, "required": [KEY]},
    },
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": NAME, "content": "zqres"}
MAX_SHAPES = 4096


@dataclass(frozen=True)
class CallForm:
    """How a template wants calls: their arguments, and a message that has nothing but calls."""

    arguments: Literal["object", "text"]
    empty_content: bool


FORMS = tuple(CallForm(arguments, empty) for arguments in ("object", "text") for empty in (True, False))  # type: ignore[arg-type]
"""In the order in which they are tried."""


class Renderer:
    """Renders conversations with `render`. What was learned of the template is kept."""

    def __init__(self, render: Render) -> None:
        self.bare = render
        self._lost: dict[tuple[Shape, bool], tuple[str, ...]] = {}

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None, *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation in any form. Raises what the template raises."""
        return self.bare(*self.prepared(messages, tools), add_generation_prompt)

    def prepared(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> tuple[Messages, Any]:
        """Messages and tools as the template wants them."""
        tools = canonical_tools(tools)
        chat = canonical_messages(messages, tools)
        if any(message.get("role") == "developer" for message in chat) and self.developer_is_system:
            chat = [{**m, "role": "system"} if m.get("role") == "developer" else m for m in chat]
        if any(message.get("tool_calls") for message in chat):
            chat = [_in_form(message, self.call_form) if message.get("tool_calls") else message for message in chat]
        return chat, tools

    def lost(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Any = None,
        *,
        add_generation_prompt: bool = False,
        reasoning: bool = True,
    ) -> list[str]:
        """The places of `messages` and `tools` that the text does not hold, such as `messages[0].content (system)`.

        Told from the roles and fields the conversation has, never from its words. Thoughts count with `reasoning`;
        those of turns of `weight` 0 never do. Empty where the template refuses the conversation: rendering says so.
        """
        chat, offered = self.prepared(messages, tools)
        shape = shape_of(chat, offered)
        key = shape, add_generation_prompt
        if key not in self._lost:
            marked, marked_tools, marks = with_marks(shape, self.call_form if shape.has_calls else FORMS[0], chat)
            text = self._text(marked, marked_tools, add_generation_prompt)
            if text is None:
                return []
            if len(self._lost) >= MAX_SHAPES:
                self._lost.clear()
            self._lost[key] = lost_places(text, marks)
        return [place for place in self._lost[key] if reasoning or "(thoughts" not in place]

    @cached_property
    def call_form(self) -> CallForm:
        """The form in which a call's name and arguments are rendered as JSON or in words of the template's own."""
        return next((form for form in FORMS if self._writes_calls(form)), FORMS[0])

    @cached_property
    def developer_is_system(self) -> bool:
        """Whether `developer` has to be called `system`: it is left out, refused, or put beside a default of the
        template's own, and `system` is not."""
        of_system = self._text([{"role": "system", "content": "zqsys"}, QUESTION])
        if of_system is None or "zqsys" not in of_system:
            return False
        of_developer = self._text([{"role": "developer", "content": "zqsys"}, QUESTION])
        if of_developer is None or "zqsys" not in of_developer:
            return True
        default = _between(self._text([QUESTION]) or "", of_system)
        return bool(default.strip()) and default in of_developer

    def _text(self, messages: Messages, tools: list[Any] | None = None, prompt: bool = False) -> str | None:
        try:
            return self.bare(messages, tools, prompt)
        except Exception:  # a template is a program of somebody else's
            return None

    def _writes_calls(self, form: CallForm) -> bool:
        arguments = {KEY: VALUE}
        call = {"id": "call00001", "type": "function", "function": {"name": NAME, "arguments": arguments}}
        asking = [QUESTION, _in_form({"role": "assistant", "content": "", "tool_calls": [call]}, form)]
        for turns, tools in (
            (asking, [PROBED_TOOL]),
            (asking, None),
            ([*asking, RESULT], [PROBED_TOOL]),
            ([*asking, RESULT, ANSWER], [PROBED_TOOL]),
        ):
            text = self._text(turns, tools)
            if text is None or VALUE not in text or str(arguments) in text:
                continue
            whole = json.dumps(arguments)
            if form.arguments == "object" or (whole in text and json.dumps(whole) not in text):
                return text.count(NAME) > (1 if tools else 0)
        return False


def renderer_of(tokenizer: Any) -> Renderer:
    """The renderer of a transformers tokenizer, with the chat template it has now."""
    return _renderer(tokenizer, getattr(tokenizer, "chat_template", None))


@lru_cache(maxsize=16)
def _renderer(tokenizer: Any, template: str | None) -> Renderer:
    """One for each template of each tokenizer: what it learned of the template is dear to ask for again."""

    def render(messages: Messages, tools: list[Any] | None, add_generation_prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    return Renderer(render)


def _in_form(message: dict[str, Any], form: CallForm) -> dict[str, Any]:
    """The message with its calls in the form; arguments that are no object stay as they are."""
    calls = []
    for call in message["tool_calls"] if isinstance(message["tool_calls"], list) else ():
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
            arguments = decode_arguments(call["function"].get("arguments"))
            if form.arguments == "text" and not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            call = {**call, "function": {**call["function"], "arguments": arguments}}
        calls.append(call)
    result = {**message, "tool_calls": calls}
    if not form.empty_content and result.get("content") == "":
        del result["content"]
    return result


def _between(text: str, other: str) -> str:
    """What is left of `text` without the beginning and the end it shares with `other`."""
    shorter = min(len(text), len(other))
    start = next((at for at in range(shorter) if text[at] != other[at]), shorter)
    left = shorter - start
    end = next((at for at in range(left) if text[-1 - at] != other[-1 - at]), left)
    return text[start : len(text) - end]
