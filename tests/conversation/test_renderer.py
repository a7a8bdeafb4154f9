"""What form of tool data a template wants and what it leaves out. The templates are short forms of known families."""

import json
from typing import Any

import jinja2
import pytest

from edgeft.conversation.fields import listed
from edgeft.conversation.renderer import Renderer
from edgeft.data.chatml import CHATML, PLAIN_CHATML
from edgeft.runtime.template import ChatTemplate

TURN = "{{ '<|im_start|>' + m.role + '\n' + (m.content or '') + '<|im_end|>\n' }}"
OFFER = "{% if tools %}{{ tools | tojson }}\n{% endif %}"


def calls(arguments: str) -> str:
    return "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} " + arguments + "</call>{% endfor %}"


def each(turn: str, before: str = "") -> str:
    return before + "{% for m in messages %}" + turn + "{% endfor %}"


JSON = each(TURN + calls("{{ c.function.arguments | tojson }}"), OFFER)  # Qwen 2.5, Llama 3
EITHER = each(
    TURN + calls("{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}"),
    OFFER,
)  # Qwen 3
PASTED = each(TURN + calls("{{ '```' + c.function.arguments + '```' }}"), OFFER)  # DeepSeek
PRINTED = each(TURN + calls("{{ c.function.arguments }}"), OFFER)  # writes Python's form of an object
TAGS = each(
    TURN + calls("{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}"), OFFER
)  # Qwen 3 Coder, GLM
NO_WORDS = each(
    "{% if m.content is not defined %}" + calls("{{ c.function.arguments }}") + "{% else %}" + TURN + "{% endif %}",
    OFFER,
)  # calls only where there are no words
QWEN = each(
    "{% if m.role in ['user', 'assistant', 'tool'] or (m.role == 'system' and not loop.first) %}"
    + TURN
    + "{% endif %}",
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}\n{% else %}You are Qwen.\n{% endif %}",
)
DEFAULT = "{% if messages[0].role != 'system' %}You are helpful.\n{% endif %}" + each(TURN)  # Qwen 2
GEMMA = each(TURN, "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}")
FIRST_CALL = each(TURN + "{% if m.tool_calls %}{{ m.tool_calls[0] | tojson }}{% endif %}", OFFER)  # gpt-oss
WORDS_OR_CALLS = each("{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}" + TURN + "{% endif %}", OFFER)
ONE_SYSTEM = "{{ messages[0].content }}\n" + each("{% if m.role != 'system' %}" + TURN + "{% endif %}")
NO_RESULTS = each("{% if m.role != 'tool' %}" + TURN + "{{ m.tool_calls | tojson if m.tool_calls }}{% endif %}", OFFER)
NAMES_ONLY = each(TURN, "{% for t in tools or [] %}{{ t.function.name }}\n{% endfor %}")
THINKS = each(
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{% set said = m.content.split('</think>')[-1] %}{{ m.role }} {{ said }}\n"
)  # Qwen 3: only the last thoughts

SYSTEM, USER, ANSWER = ({"role": role, "content": f"{role} said"} for role in ("system", "user", "assistant"))
TOOL = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "On or off.",
        "parameters": {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]},
    },
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "done"}


def called(*arguments: Any, content: str | None = None, **more: Any) -> dict[str, Any]:
    calls = [{"id": "c1", "type": "function", "function": {"name": "light", "arguments": a}} for a in arguments]
    return {"role": "assistant", "content": content, "tool_calls": calls, **more}


def renderer(source: str) -> Renderer:
    return ChatTemplate(source, {})._renderer


@pytest.mark.parametrize("arguments", [{"room": "hall", "n": 2}, '{"room":"hall","n":2}', '{"room": "hall", "n": 2}'])
@pytest.mark.parametrize(
    ("source", "written"),
    [
        (JSON, '<call>light {"room": "hall", "n": 2}</call>'),
        (EITHER, '<call>light {"room": "hall", "n": 2}</call>'),
        (PASTED, '<call>light ```{"room": "hall", "n": 2}```</call>'),
        (PRINTED, '<call>light {"room": "hall", "n": 2}</call>'),
        (TAGS, "<call>light <room>hall</room><n>2</n></call>"),
        (NO_WORDS, '<call>light {"room": "hall", "n": 2}</call>'),
        (CHATML, '<tool_call>{"name": "light", "arguments": {"room": "hall", "n": 2}}</tool_call>'),
    ],
)
def test_arguments_are_written_once_in_the_form_a_template_wants(source: str, written: str, arguments: Any) -> None:
    text = renderer(source).render([USER, called(arguments)], [TOOL])
    assert text.count(written) == 1


def test_letters_beyond_ascii_and_older_forms_are_written_alike() -> None:
    older = {
        "role": "assistant",
        "content": None,
        "function_call": {"name": "light", "arguments": '{"room":"K\\u00fcche"}'},
    }
    for source in (JSON, PASTED, CHATML):
        texts = {renderer(source).render([USER, m], [TOOL]) for m in (older, called({"room": "Küche"}))}
        assert len(texts) == 1
        assert '{"room": "Küche"}' in texts.pop()


@pytest.mark.parametrize(
    ("source", "becomes_system"),
    [(CHATML, False), (QWEN, True), (DEFAULT, True), (GEMMA, False), (JSON, False)],
)
def test_developer_is_called_system_where_only_that_is_known(source: str, becomes_system: bool) -> None:
    asked = [{"role": "developer", "content": "Be brief."}, USER]
    chat, _ = renderer(source).prepared(asked)
    assert chat[0]["role"] == ("system" if becomes_system else "developer")
    if becomes_system:
        text = renderer(source).render(asked)
        assert text == renderer(source).render([{**asked[0], "role": "system"}, USER])
        assert "Be brief." in text
        assert "You are" not in text


@pytest.mark.parametrize(
    ("source", "messages", "tools", "lost"),
    [
        (CHATML, [SYSTEM, USER, called('{"room": "a"}', {"room": "b"}, content="w"), RESULT, ANSWER], [TOOL, TOOL], ""),
        (CHATML, [{**SYSTEM, "role": "developer"}, USER, called({})], [TOOL], ""),
        (CHATML, [USER, SYSTEM, USER, ANSWER], None, ""),
        (PLAIN_CHATML, [USER, called({"room": "a"}), RESULT, ANSWER], None,
         "messages[1].tool_calls[0].function.name, messages[1].tool_calls[0].function.arguments (names), "
         "messages[1].tool_calls[0].function.arguments (values)"),
        (PLAIN_CHATML, [USER, called("{}")], None, "messages[1].tool_calls[0].function.name"),
        (PLAIN_CHATML, [USER, ANSWER], [TOOL],
         "tools[0].function.name, tools[0].function.description, tools[0].function.parameters"),
        (NAMES_ONLY, [USER, ANSWER], [TOOL], "tools[0].function.description, tools[0].function.parameters"),
        (NAMES_ONLY, [USER, ANSWER], [{"type": "function", "function": {"name": "off"}}], ""),
        (FIRST_CALL, [USER, called({"a": 1}, {"a": 2})], None,
         "messages[1].tool_calls[1].function.name, messages[1].tool_calls[1].function.arguments (names), "
         "messages[1].tool_calls[1].function.arguments (values)"),
        (WORDS_OR_CALLS, [USER, called({"a": 1}, content="Let me see.")], None, "messages[1].content (assistant)"),
        (WORDS_OR_CALLS, [USER, called({"a": 1}, content=" ")], None, ""),
        (NO_RESULTS, [USER, called({"a": 1}), RESULT, ANSWER], None, "messages[2].content (tool)"),
        (ONE_SYSTEM, [SYSTEM, SYSTEM, USER, ANSWER], None, "messages[1].content (system)"),
        (QWEN, [{**SYSTEM, "role": "developer"}, USER, ANSWER], None, ""),
        (QWEN, [USER, {**SYSTEM, "role": "developer"}, USER, ANSWER], None, ""),
        (each("{% if m.role != 'developer' and m.role != 'system' %}" + TURN + "{% endif %}"),
         [{**SYSTEM, "role": "developer"}, USER], None, "messages[0].content (developer)"),
        (each("{% if m.role != 'user' %}" + TURN + "{% endif %}"), [USER, ANSWER], None, "messages[0].content (user)"),
        (THINKS, [USER, {**ANSWER, "reasoning_content": "hm"}], None, ""),
        (THINKS, [USER, {**ANSWER, "reasoning": "hm"}, USER, ANSWER], None, "messages[1].reasoning (thoughts)"),
        (THINKS, [USER, {**ANSWER, "reasoning": "hm", "weight": 0}, USER, ANSWER], None, ""),
        (THINKS, [USER, {**ANSWER, "content": "<think>hm</think>x"}], None,
         "messages[1].content (thoughts before </think>)"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out(source: str, messages: list[Any], tools: Any, lost: str) -> None:
    found = renderer(source).lost(messages, tools)
    assert ", ".join(found) == lost


def test_thoughts_of_a_history_may_go() -> None:
    history = [USER, {**ANSWER, "reasoning_content": "hm"}, USER]
    assert renderer(THINKS).lost(history)
    assert not renderer(THINKS).lost(history, reasoning=False)


def test_a_refusal_is_the_templates_own_word_and_loses_nothing() -> None:
    refusing = renderer(GEMMA)
    assert refusing.lost([SYSTEM, USER]) == []
    with pytest.raises(jinja2.TemplateError, match="System role not supported"):
        refusing.render([SYSTEM, USER])


def test_the_template_is_asked_once_for_conversations_of_one_shape() -> None:
    asked = []

    def render(messages: list[Any], tools: Any, prompt: bool) -> str:
        asked.append(messages)
        return json.dumps([messages, tools])

    counting = Renderer(render)
    for number in range(50):
        assert not counting.lost([USER, {"role": "assistant", "content": f"answer {number}"}])
    assert len(asked) == 1


def test_long_lists_are_cut_in_messages() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
