"""The chat template of the embedded base: plain ChatML where there are no tools, and tools that come back as calls."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import edgeft
from edgeft.data.chatml import CHATML, PLAIN_CHATML
from edgeft.export.gguf.contract import CALL, CONVERSATIONS, LIGHTS
from edgeft.runtime import ToolCall
from edgeft.runtime.template import ChatTemplate
from edgeft.runtime.tool_calls import parse_calls
from tests.tiny import tiny_tokenizer

NANO = Path(edgeft.__file__).parent / "assets" / "nano"
USER = {"role": "user", "content": "hi"}
OFFERED = (
    'set_light: Turn a light on or off, in “any” room. {"room": {"type": "string"}, "level": {"type": "integer", '
    '"minimum": 0}} required: room'
)
REFERENCE = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": "string"}}}


def test_the_embedded_base_has_it() -> None:
    assert (NANO / "chat_template.jinja").read_text("utf-8") == CHATML


@pytest.mark.parametrize("conversation", [c for c in CONVERSATIONS if c.tools is None], ids=lambda c: c.name)
@pytest.mark.parametrize("prompt", [False, True])
def test_without_tools_it_renders_what_the_base_was_trained_on(conversation: Any, prompt: bool) -> None:
    """Oracle: transformers with plain ChatML."""
    tokenizer, messages = tiny_tokenizer(), list(conversation.messages)
    texts = [
        tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=prompt)
        for source in (CHATML, PLAIN_CHATML)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("role", ["system", "developer", None])
def test_tools_stand_in_the_system_message(role: str | None) -> None:
    messages = [{"role": role, "content": "Be brief."}, USER] if role else [USER]
    theirs = tiny_tokenizer().apply_chat_template(
        messages, tools=[LIGHTS, LIGHTS], chat_template=CHATML, tokenize=False, add_generation_prompt=True
    )
    said = "Be brief.\n\n" if role else ""
    head = f"<|im_start|>{role or 'system'}\n{said}Tools:\n{OFFERED}\n{OFFERED}<|im_end|>\n"
    assert theirs == head + "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(CHATML, {}).render(messages, tools=[LIGHTS, LIGHTS], add_generation_prompt=True) == theirs


@pytest.mark.parametrize(
    ("parameters", "line"),
    [
        (None, "f"),
        ({"type": "object", "properties": {}}, "f"),
        ({"type": "object", "properties": {"a": {"type": "number"}}}, 'f {"a": {"type": "number"}}'),
        (
            {"properties": {"a": {}, "b": {}}, "required": ["b", "a"], "additionalProperties": False},
            'f {"a": {}, "b": {}} required: b, a',
        ),
        (REFERENCE, "f " + json.dumps(REFERENCE)),
        (
            {"type": "object", "additionalProperties": {"type": "string"}},
            'f {"type": "object", "additionalProperties": {"type": "string"}}',
        ),
    ],
)
def test_parameters_are_short_where_nothing_is_lost(parameters: Any, line: str) -> None:
    function = {"name": "f"} | ({"parameters": parameters} if parameters is not None else {})
    text = ChatTemplate(CHATML, {}).render([USER], tools=[{"function": function}], add_generation_prompt=False)
    assert text.startswith(f"<|im_start|>system\nTools:\n{line}<|im_end|>\n")


@pytest.mark.parametrize("content", ["", "Let me see.\nOne moment."])
@pytest.mark.parametrize("arguments", [[{"room": "Küche"}], [{"room": 'a "b"'}, {"room": "c", "level": 3}], [{}]])
def test_calls_come_back_from_the_text(arguments: list[dict[str, Any]], content: str) -> None:
    calls = [{**CALL, "function": {"name": "set_light", "arguments": each}} for each in arguments]
    messages = [USER, {"role": "assistant", "content": content, "tool_calls": calls}]
    template = ChatTemplate(CHATML, {})
    prompt = template.render([USER], tools=[LIGHTS], add_generation_prompt=True)
    text = template.render(messages, tools=[LIGHTS], add_generation_prompt=False)
    assert text.startswith(prompt)
    answer = text.removeprefix(prompt).removesuffix("<|im_end|>\n")
    assert answer.startswith(content)
    assert list(parse_calls(answer, [LIGHTS])) == [ToolCall("set_light", each) for each in arguments]


def test_it_is_short_in_the_bases_own_tokens() -> None:
    """A dozen tools of two parameters leave most of 1,024 tokens free; Qwen's form takes 1.5 times as many."""
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    ids = tokenizer.apply_chat_template([USER], tools=[LIGHTS] * 12, return_dict=False)
    assert len(ids) < 700
    assert len(tokenizer("\n".join([json.dumps(LIGHTS)] * 12))["input_ids"]) > 1.5 * len(ids)
