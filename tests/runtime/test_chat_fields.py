"""What a client sends, in whatever form, reaches the prompt whole, or the chat is refused."""

import json
from typing import Any

import pytest

from edgeft.data.chatml import CHATML, PLAIN_CHATML
from edgeft.errors import ModelError
from edgeft.runtime import Model
from edgeft.runtime.template import ChatTemplate

USER, SYSTEM = {"role": "user", "content": "lamp on"}, {"role": "system", "content": "Be brief."}
TOOLS = [
    {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {"on": {}}}}}
]
CALL = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": '{"on":true}'}}
SENT_BACK = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "audio": None,
    "function_call": None,
    "tool_calls": [CALL],
}
AS_OBJECT = {**CALL, "function": {"name": "light", "arguments": {"on": True}}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "ok"}


@pytest.mark.parametrize(
    ("messages", "tools", "place"),
    [
        ([USER], TOOLS, r"tools\[0\]\.function\.name"),
        ([USER], json.dumps(TOOLS), r"tools\[0\]\.function\.name"),
        ([USER, SENT_BACK, RESULT], None, r"messages\[1\]\.tool_calls\[0\]\.function\.name"),
        ([USER, {"role": "assistant", "function_call": CALL["function"]}, USER], None, r"messages\[1\]\.tool_calls"),
        ([USER], "lights", "neither a list nor the JSON text"),
    ],
)
def test_a_chat_that_would_lose_a_part_is_refused(either: Model, messages: Any, tools: Any, place: str) -> None:
    """llama.cpp#27588; the model's template is plain ChatML."""
    with pytest.raises(ModelError, match=place):
        either.chat(messages, tools=tools, max_new_tokens=1)
    assert either.chat([SYSTEM, {**SYSTEM, "role": "developer"}, USER], max_new_tokens=1).n_prompt


@pytest.mark.parametrize(
    "history",
    [
        [USER, SENT_BACK, RESULT],
        [USER, {**SENT_BACK, "content": ""}, RESULT],
        [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT],
        [USER, {"role": "assistant", "function_call": CALL["function"]}, {**RESULT, "role": "function"}],
        [USER, {**SENT_BACK, "tool_calls": [AS_OBJECT]}, RESULT],
    ],
    ids=["null", "empty", "missing", "2023", "object"],
)  # fmt: skip
def test_the_history_of_a_client_is_rendered_as_it_was_learned(history: list[dict[str, Any]]) -> None:
    """mlx-vlm#1864, d-inference#249: `content: null` and arguments as text, which every OpenAI client sends back."""
    text = ChatTemplate(CHATML, {}).render(history, tools=None, add_generation_prompt=True)
    called = '<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call>'
    turns = [("user", "lamp on"), ("assistant", called), ("tool", "ok")]
    wanted = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns)
    assert text == wanted + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "messages", "tools", "lost"),
    [
        (CHATML, [USER, SENT_BACK, RESULT], TOOLS, None),
        (PLAIN_CHATML, [SYSTEM, USER], None, None),
        (PLAIN_CHATML.replace("message['role'] +", "'user' +"), [SYSTEM, USER], None, None),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", [SYSTEM, USER], None,
         r"messages\[0\]\.content \(system\)"),
        ("{% for m in messages %}{{ m.content if m.role == 'user' }}{% endfor %}", [USER, RESULT, USER], None,
         r"messages\[1\]\.content \(tool\)"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", [USER, {**RESULT, "role": "assistant", "thinking": "y"}],
         None, None),
    ],
)  # fmt: skip
def test_check(source: str, messages: list[dict[str, Any]], tools: Any, lost: str | None) -> None:
    template = ChatTemplate(source, {})
    if lost is None:
        template.check(messages, tools)
    else:
        with pytest.raises(ModelError, match=f"leaves out {lost}: the model would never see it"):
            template.check(messages, tools)
