"""From a conversation to token ids, and which of them are learned.

The prompt's ids in training must be the ids the runtime makes from the same prompt, or the model meets at
run time what it never saw. So the conversation is rendered whole, tokenized once, and each assistant turn is
located by rendering the conversation up to it with `add_generation_prompt`: what follows that prefix, up to
the end of the turn, is learned.
"""

from typing import Any, Protocol

from edgeft.errors import DataError, ModelError


class ChatTokenizer(Protocol):
    """What is needed of a transformers tokenizer."""

    is_fast: bool

    def apply_chat_template(self, conversation: list[dict[str, Any]], **kwargs: Any) -> Any: ...

    def __call__(self, text: str, **kwargs: Any) -> Any: ...

    def decode(self, token_ids: list[int]) -> Any: ...


def encode_chat(
    tokenizer: ChatTokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> tuple[list[int], list[bool]]:
    """Ids (T,) and loss mask (T,) of a conversation; True where an assistant turn is learned: its words and its
    tool calls, up to the end of the turn. Turns of `weight` 0 (as OpenAI's fine-tuning has it) are read, not learned.

    Raises ModelError when the template does not extend a conversation turn by turn, or a token straddles
    the border between a prompt and its answer; DataError when it renders no assistant token that is learned.
    """
    messages = [message if message.get("content") is not None else {**message, "content": ""} for message in messages]
    text = _render(tokenizer, messages, tools, generate=False)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant" or message.get("weight") == 0:
            continue
        prompt = _render(tokenizer, messages[:at], tools, generate=True)
        turn = _render(tokenizer, messages[: at + 1], tools, generate=False)
        if not (text.startswith(turn) and turn.startswith(prompt)):
            raise ModelError(
                "the chat template rewrites earlier turns or renders answers differently from prompts (the "
                f"conversation up to turn {at + 1} is not a prefix of the whole); train on one answer an example "
                "or mend the template"
            )
        spans.append((len(prompt), _turn_end(turn, prompt, message)))
    if not spans:
        raise DataError("every answer has weight 0" if "assistant" in {m["role"] for m in messages} else "no answer")
    return _mark(tokenizer, text, spans)


def encode_prompt(
    tokenizer: ChatTokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
) -> list[int]:
    """The ids a runtime must feed to get an answer to `messages`."""
    text = _render(tokenizer, messages, tools, generate=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _render(
    tokenizer: ChatTokenizer,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    *,
    generate: bool,
) -> str:
    if not messages:  # an assistant that speaks first: templates refuse an empty conversation
        probe = [{"role": "user", "content": "x"}]
        asked = _render(tokenizer, probe, tools, generate=True)
        return asked.removeprefix(_render(tokenizer, probe, tools, generate=False))
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=generate))


def _turn_end(turn: str, prompt: str, message: dict[str, Any]) -> int:
    """Where learning stops: behind the end-of-turn marker, before the white space some templates add.

    ChatML ends a turn with `<|im_end|>\\n`; the model stops at `<|im_end|>`, the newline is never generated.
    """
    if not message["content"].strip():
        return len(turn.rstrip())
    content_end = turn.rfind(message["content"].rstrip(), len(prompt)) + len(message["content"].rstrip())
    return max(len(turn.rstrip()), content_end)


def _mark(tokenizer: ChatTokenizer, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    mask = [False] * len(ids)
    for start, end in spans:
        for i, (a, b) in enumerate(offsets):
            if a < start < b:
                raise ModelError(
                    f"the token for {text[a:b]!r} straddles the border between prompt and answer; end the "
                    "template's generation prompt with a newline or a special token"
                )
            if start <= a < end:
                mask[i] = True
    if not any(mask):
        raise DataError("the template renders no assistant token")
    return ids, mask
