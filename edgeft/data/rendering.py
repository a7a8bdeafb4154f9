"""From a conversation to token ids, and which of them are learned.

The prompt's ids in training must be the ids the runtime makes from the same prompt, or the model meets at
run time what it never saw. So the conversation is rendered whole, tokenized once, and each assistant turn is
located by rendering the conversation up to it with `add_generation_prompt`: what follows that prefix, up to
the end of the turn, is learned. Nothing of a conversation may be left out by the template, and no answer may end
without a token that ends it.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from edgeft.conversation.canonical import undecodable
from edgeft.conversation.fields import listed
from edgeft.conversation.renderer import Renderer, renderer_of
from edgeft.data.surrogates import half_character
from edgeft.errors import DataError, ModelError

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]
MEND = "use a chat template that writes them (model.chat_template), or take them out of the data"


class Refused(DataError):
    """The chat template refuses the conversation; the message has the template's own words."""


class LeftOut(DataError):
    """The chat template leaves out a part of the conversation, which would then not be learned."""


class NoEndToken(DataError):
    """What is learned of an answer has no end token at its end: the model would never stop."""


class ChatTokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    is_fast: bool

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any: ...

    def __call__(self, text: str, **kwargs: Any) -> Any: ...

    def decode(self, token_ids: list[int]) -> Any: ...


def encode_chat(
    tokenizer: ChatTokenizer, messages: Messages, tools: Tools | None = None
) -> tuple[list[int], list[bool]]:
    """Ids (T,) and loss mask (T,) of a conversation; True where an assistant turn is learned: its words and its
    tool calls, up to the end of the turn. Turns of `weight` 0 (as OpenAI's fine-tuning has it) are read, not learned.

    Raises ModelError when the template does not extend a conversation turn by turn, or a token straddles
    the border between a prompt and its answer; DataError when it renders no assistant token that is learned, and its
    subclasses here when the template refuses the conversation, leaves out a part of it or ends no answer.
    """
    renderer = renderer_of(tokenizer)
    chat, offered = _prepared(renderer, messages, tools)
    text = _render(renderer, chat, offered, generate=False)
    spans = []
    for at, message in enumerate(chat):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        prompt = _render(renderer, chat[:at], offered, generate=True)
        turn = _render(renderer, chat[: at + 1], offered, generate=False)
        if not (text.startswith(turn) and turn.startswith(prompt)):
            raise ModelError(
                "the chat template rewrites earlier turns or renders answers differently from prompts (the "
                f"conversation up to turn {at + 1} is not a prefix of the whole); train on one answer an example "
                "or mend the template"
            )
        spans.append((at, len(prompt), _turn_end(turn, prompt, message)))
    if not spans:
        raise DataError("every answer has weight 0" if "assistant" in {m["role"] for m in chat} else "no answer")
    _refuse_losses(renderer.lost(messages, tools))
    ids, learned = _locate(tokenizer, text, [(start, end) for _, start, end in spans])
    ends = _end_ids(tokenizer)
    for (at, start, end), places in zip(spans, learned, strict=True):
        if not places or ids[places[-1]] not in ends:
            raise NoEndToken(
                f"the answer messages[{at}] is learned as {text[max(start, end - 40) : end]!r}, without an end token: "
                "the model would never stop; let the chat template write one behind it (model.chat_template)"
            )
        if chat[at].get("tool_calls") and len(places) < 2:
            raise LeftOut(f"the chat template leaves out messages[{at}].tool_calls: an empty answer would be learned")
    of_answers = {place for places in learned for place in places}
    return ids, [place in of_answers for place in range(len(ids))]


def encode_prompt(tokenizer: ChatTokenizer, messages: Messages, tools: Tools | None = None) -> list[int]:
    """The ids a runtime must feed to get an answer to `messages`. Raises DataError like `encode_chat`."""
    renderer = renderer_of(tokenizer)
    text = _render(renderer, *_prepared(renderer, messages, tools), generate=True)
    _refuse_losses(renderer.lost(messages, tools, add_generation_prompt=True, reasoning=False))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def chat_ids(tokenizer: ChatTokenizer, messages: Messages, tools: Tools | None = None) -> list[int]:
    """The ids of a whole conversation, where nothing is learned from it. Raises DataError where it is refused."""
    renderer = renderer_of(tokenizer)
    text = _render(renderer, *_prepared(renderer, messages, tools), generate=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _prepared(renderer: Renderer, messages: Messages, tools: Tools | None) -> tuple[Messages, Any]:
    chat, offered = renderer.prepared(messages, tools)
    problem = next(undecodable(chat, offered), None)
    if problem is not None:
        raise DataError(problem)
    return chat, offered


def _render(renderer: Renderer, chat: Messages, tools: Any, *, generate: bool) -> str:
    if not chat:  # an assistant that speaks first: templates refuse an empty conversation
        probe = [{"role": "user", "content": "x"}]
        asked = _render(renderer, probe, tools, generate=True)
        return asked.removeprefix(_render(renderer, probe, tools, generate=False))
    try:
        text = renderer.bare(chat, tools, generate)
    except Exception as error:  # a template is a program of somebody else's
        raise Refused(f"the chat template refuses it: {error}") from error
    if half := half_character(text):
        raise DataError(f"{half}; the text was cut inside a character: get it again, or remove the line")
    return text


def _refuse_losses(lost: Sequence[str]) -> None:
    if lost:
        raise LeftOut(f"the chat template leaves out {listed(lost)}: the model would never see it; {MEND}")


def _turn_end(turn: str, prompt: str, message: dict[str, Any]) -> int:
    """Where learning stops: behind the end-of-turn marker, before the white space some templates add.

    ChatML ends a turn with `<|im_end|>\\n`; the model stops at `<|im_end|>`, the newline is never generated.
    """
    content = message.get("content") or ""
    if not content.strip():
        return len(turn.rstrip())
    content_end = turn.rfind(content.rstrip(), len(prompt)) + len(content.rstrip())
    return max(len(turn.rstrip()), content_end)


def _locate(tokenizer: ChatTokenizer, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[list[int]]]:
    """The ids of the text, and for each span the places of its ids."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    for start, _ in spans:
        straddling = next(((a, b) for a, b in offsets if a < start < b), None)
        if straddling is not None:
            raise ModelError(
                f"the token for {text[slice(*straddling)]!r} straddles the border between prompt and answer; end the "
                "template's generation prompt with a newline or a special token"
            )
    learned = [[i for i, (a, _) in enumerate(offsets) if start <= a < end] for start, end in spans]
    if not any(learned):
        raise DataError("the template renders no assistant token")
    return ids, learned


def _end_ids(tokenizer: ChatTokenizer) -> set[int | None]:
    """What a runtime stops at: the end token and the special tokens, of which a template writes one behind answers."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return {*added, *getattr(tokenizer, "all_special_ids", ()), getattr(tokenizer, "eos_token_id", None)}
