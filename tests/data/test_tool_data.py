"""Public bug reports about tool data, replayed: nothing is silently not learned, and one form of it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeft.console import silent_log
from edgeft.data.chat import read_chat
from edgeft.data.chatml import CHATML, PLAIN_CHATML
from edgeft.data.check.engine import Checked, FileSummary
from edgeft.data.check.tokens import count_tokens
from edgeft.data.importing import import_examples
from edgeft.data.plain import read_texts
from edgeft.data.preferences import encode_pairs, read_pairs
from edgeft.data.preview import preview
from edgeft.data.reading import read_examples
from edgeft.data.rendering import LeftOut, NoEndToken, Refused, encode_chat, encode_prompt
from edgeft.errors import DataError, ModelError
from tests.tiny import tiny_tokenizer

USER, SYSTEM = {"role": "user", "content": "lamp on"}, {"role": "system", "content": "Be brief."}
LIGHT = {"name": "light", "description": "On or off.", "parameters": {"type": "object", "properties": {"on": {}}}}
PADDED = {**LIGHT["parameters"], "required": None}  # type: ignore[dict-item]
TOOLS = [{"type": "function", "function": LIGHT}]
ARGUMENTS = '{"on": true}'
JSON_CALLS = CHATML.replace("function['arguments'] is string", "false")  # Qwen 2.5, Llama 3: `arguments | tojson`
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


def calling(arguments: Any = ARGUMENTS, content: str | None = None) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "light", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


RESULT, DONE = {"role": "tool", "tool_call_id": "c1", "content": "ok"}, {"role": "assistant", "content": "Done."}
OLDER = {"role": "assistant", "content": "", "function_call": {"name": "light", "arguments": ARGUMENTS}}


def tokenizer(template: str) -> Any:
    made = tiny_tokenizer()
    made.chat_template = template
    return made


def learned(template: str, messages: list[Any], tools: Any = None) -> str:
    reader = tokenizer(template)
    ids, mask = encode_chat(reader, messages, tools)
    return str(reader.decode([token for token, is_learned in zip(ids, mask, strict=True) if is_learned]))


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "t.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


LOST = [
    ("a call alone", [USER, calling()], TOOLS, "messages[1].tool_calls[0].function.name"),
    ("a call and its result", [USER, calling(), RESULT, DONE], None, "messages[1].tool_calls[0].function.name"),
    ("tools never called", [USER, DONE], TOOLS, "tools[0].function.name"),
    ("tools as text", [USER, DONE], json.dumps(TOOLS), "tools[0].function.name"),
    ("an older call", [USER, OLDER], None, "messages[1].tool_calls[0].function.name"),
    ("a call beside words", [USER, calling(content="Let me see.")], None, "messages[1].tool_calls[0].function.name"),
]


@pytest.mark.parametrize(("name", "messages", "tools", "place"), LOST, ids=[case[0] for case in LOST])
def test_what_a_template_leaves_out_is_never_silently_not_learned(
    name: str, messages: list[Any], tools: Any, place: str, tmp_path: Path
) -> None:
    """trl#5517, axolotl#3824, llama.cpp#27588: the same under every door to a plain ChatML template."""
    plain = tokenizer(PLAIN_CHATML)
    path = written(tmp_path, {"messages": messages, **({"tools": tools} if tools else {})})
    with pytest.raises(LeftOut, match="leaves out") as raised:
        encode_chat(plain, messages, tools)
    assert place in str(raised.value)
    reading = read_examples(path)
    ((line, example),) = list(reading.examples)
    with pytest.raises(DataError, match=r"t\.jsonl:1: the chat template leaves out"):
        preview(plain, example, path, line)
    summary, checked = FileSummary(path, "chat", n_examples=1), Checked()
    count_tokens(plain, 512, summary, checked, silent_log())
    assert [(found.code, found.line) for found in checked.findings] == [("E605", 1)]
    text = learned(CHATML, messages, tools)
    assert text.endswith("<|im_end|>")
    assert ("light" in text) == ("tools" not in name)


@pytest.mark.parametrize("door", ["chosen", "rejected", "prompt", "tools"])
def test_pairs_lose_nothing(door: str, tmp_path: Path) -> None:
    """axolotl#3824: DPO dropped tool_calls and never passed the tools."""
    row: dict[str, Any] = {"prompt": [USER], "chosen": [DONE], "rejected": [{"role": "assistant", "content": "No."}]}
    row |= {door: TOOLS if door == "tools" else [USER, calling(), RESULT] if door == "prompt" else [calling()]}
    path = written(tmp_path, row)
    with pytest.raises(DataError, match=r"t\.jsonl:1: the chat template leaves out"):
        encode_pairs(read_pairs(path), tokenizer(PLAIN_CHATML), 512)
    assert encode_pairs(read_pairs(path), tokenizer(CHATML), 512).counts["pairs"] == 1


def test_a_prompt_for_a_teacher_loses_nothing() -> None:
    with pytest.raises(LeftOut, match=r"tools\[0\]\.function\.name"):
        encode_prompt(tokenizer(PLAIN_CHATML), [USER], TOOLS)
    assert encode_prompt(tokenizer(CHATML), [USER, calling(), RESULT], TOOLS)


FORMS = {
    "text": calling(),
    "object": calling({"on": True}),
    "text, tight": calling('{"on":true}', ""),
    "2023": OLDER,
    "2023, null": {**OLDER, "content": None},
    "packed": {**calling(), "tool_calls": json.dumps(calling()["tool_calls"])},
}


@pytest.mark.parametrize("template", [CHATML, JSON_CALLS], ids=["either", "tojson"])
def test_every_form_of_a_call_is_learned_alike(template: str) -> None:
    """oumi#2599, flama#258, dynamo#4161, openai-cookbook#812: JSON text was learned as a quoted string."""
    texts = {name: learned(template, [USER, message], TOOLS) for name, message in FORMS.items()}
    assert set(texts.values()) == {'<tool_call>{"name": "light", "arguments": {"on": true}}</tool_call><|im_end|>'}


@pytest.mark.parametrize(
    "tools",
    [
        TOOLS,
        json.dumps(TOOLS),
        [LIGHT],
        [json.dumps(LIGHT)],
        [{"type": "function", "function": {**LIGHT, "strict": None, "parameters": PADDED}}],
    ],
)  # fmt: skip
def test_every_form_of_tools_is_read_alike(tools: Any, tmp_path: Path) -> None:
    """Tools as text, and ms-swift#10125: schemas that Arrow pads with null."""
    reader = tokenizer(CHATML)
    wanted = encode_chat(reader, [USER, calling()], TOOLS)  # type: ignore[list-item]
    assert encode_chat(reader, [USER, calling()], tools) == wanted
    (example,) = read_chat(written(tmp_path, {"messages": [USER, calling()], "tools": tools}))
    assert example.extra["tools"] == TOOLS


@pytest.mark.parametrize(
    ("template", "messages", "error", "said"),
    [
        (REFUSES + CHATML, [SYSTEM, USER, DONE], Refused, "refuses it: System role not supported"),
        ("{{ messages[0].nothing.at_all }}", [USER, DONE], Refused, "refuses it: 'dict object' has no attribute"),
        ("{{ messages[0].content + 1 }}", [USER, DONE], Refused, "refuses it: can only concatenate"),
        (CHATML, [USER, calling("{")], DataError, r"messages\[1\].*arguments is neither an object"),
        (CHATML, [USER, calling([1])], DataError, r"messages\[1\].*arguments is neither an object"),
        (CHATML, [{"role": "user", "content": "\ud83d"}, DONE], DataError, r"half of a surrogate pair, U\+D83D"),
        (CHATML, [USER, calling({"on": "\ude00"})], DataError, r"half of a surrogate pair, U\+DE00"),
        ("{% for m in messages %}{{ m.role + ' ' + m.content + '\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}", [USER, DONE],
         NoEndToken, r"learned as 'Done\.'"),
        ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", [USER, DONE, USER, DONE],
         NoEndToken, "let the chat template write one"),
        ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content "
         "+ (eos_token if m.role == 'user' else '') }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", [USER, DONE],
         NoEndToken, "would never stop"),
    ],
)  # fmt: skip
def test_the_first_word_is_the_templates_or_the_datas_own(
    template: str, messages: list[Any], error: type[DataError], said: str
) -> None:
    """unsloth#334, smol-course#260, trl#976, llm-course#33."""
    with pytest.raises(error, match=said):
        encode_chat(tokenizer(template), messages)


DEEP = '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "more": %s}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (DEEP % ("[" * 100 + "]" * 100), "nested more than 64 levels deep"),
        (DEEP % ("[" * 100_000 + "]" * 100_000), "nested too deeply"),
        (DEEP % '"\\ud83d"', r"more holds half of a surrogate pair, U\+D83D"),
        (DEEP % '{"\\udc00": 1}', r"a name in more holds half of a surrogate pair, U\+DC00"),
        (json.dumps({"messages": [{"role": "user", "content": "a\ud800"}]}), r"messages\[0\]\.content holds half"),
        (json.dumps({"messages": [USER, calling("{")]}), r"messages\[1\]\.tool_calls\[0\]\.function\.arguments is"),
        (json.dumps({"messages": [USER, DONE], "tools": "lights"}), "tools is a text that is no JSON list"),
        (json.dumps({"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "x"}]}]}),
         "list of parts, not a string; `edgeft data import"),
        (json.dumps({"instruction": "x", "output": "y"}), "`edgeft data import .*t.jsonl -o OUT`"),
        ("[", "a file of one JSON array.*edgeft data import"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"messages": [USER, DONE]}), line)
    with pytest.raises(DataError, match=rf"(?s)t\.jsonl:2: .*{said}"):
        read_chat(path)


@pytest.mark.parametrize("answer", [OLDER, {**OLDER, "content": None}, FORMS["packed"], calling(content="")])
@pytest.mark.parametrize("form", ["chat", "dpo", "preference"])
def test_import_writes_the_form_of_today(form: str, answer: dict[str, Any], tmp_path: Path) -> None:
    """Rapid-MLX#465, OpenPipe#338: copied through, then not learned."""
    rows: dict[str, dict[str, Any]] = {
        "chat": {"messages": [USER, answer]},
        "dpo": {"prompt": [USER], "chosen": [answer], "rejected": [DONE]},
        "preference": {"input": {"messages": [USER]}, "preferred_output": [answer], "non_preferred_output": [DONE]},
    }
    path = written(tmp_path, rows[form] | {"functions": [LIGHT]})
    reading = read_examples(path)
    done = import_examples(reading, tmp_path / "out.jsonl")
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "light"
    assert row["messages"][1]["content"] == ""
    assert row["tools"] == TOOLS
    assert not {"function_call", "functions"} & (set(row) | set(row["messages"][1]))
    assert any(what.startswith("older or packed form") for what in done.losses)
    assert not reading.problems


def test_half_a_character_in_a_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.jsonl:1: text holds half of a surrogate pair"):
        read_texts(written(tmp_path, '{"text": "a\\ud83d"}'))


@pytest.mark.parametrize("make", [lambda m: m, lambda m: {**m, "role": "developer"}], ids=["system", "developer"])
def test_developer_is_learned_as_system_where_only_that_is_known(make: Callable[[Any], Any]) -> None:
    """Qwen's templates drop `developer` and write a system prompt of their own instead."""
    qwen = (
        "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}"
        "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    reader = tokenizer(qwen)
    ids, _ = encode_chat(reader, [make(SYSTEM), USER, DONE])
    assert ids == encode_chat(reader, [SYSTEM, USER, DONE])[0]
    with pytest.raises(LeftOut, match=r"messages\[3\]\.content \(system\)"):
        encode_chat(reader, [SYSTEM, USER, DONE, make(SYSTEM), USER, DONE])


def test_a_template_that_rewrites_turns_is_still_named_so() -> None:
    only_last = "{% for m in messages %}{{ m.content + '<|im_end|>' if loop.last else 'x' }}{% endfor %}"
    with pytest.raises(ModelError, match="rewrites earlier turns"):
        encode_chat(tokenizer(only_last), [USER, DONE, USER, DONE])
