"""Reading the test set."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.bench.examples import Example, read_examples, take
from edgeft.errors import DataError

GOOD = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def test_read(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(f'{GOOD}\n\n{GOOD[:-1]}, "tools": [{{"name": "t"}}], "id": 3}}\n')
    prompt = ({"role": "user", "content": "q"},)
    tool = {"type": "function", "function": {"name": "t"}}
    assert read_examples(path) == [Example(prompt, "a"), Example(prompt, "a", (tool,), {"id": 3})]


CALL = {"id": "c", "type": "function", "function": {"name": "t", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "t"}}
PADDED = {"type": "function", "function": {"name": "t", "strict": None}}


@pytest.mark.parametrize(
    ("answer", "tools"),
    [
        ({"content": None, "tool_calls": [CALL]}, {"tools": [TOOL]}),
        ({"tool_calls": json.dumps([CALL])}, {"tools": json.dumps([TOOL])}),
        ({"content": None, "function_call": CALL["function"]}, {"functions": [TOOL["function"]]}),
        ({"content": "", "function_call": CALL["function"]}, {"tools": [PADDED]}),
    ],
)  # fmt: skip
def test_every_form_of_tool_data_is_read_alike(tmp_path: Path, answer: dict[str, Any], tools: dict[str, Any]) -> None:
    path = tmp_path / "test.jsonl"
    line = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", **answer}], **tools}
    path.write_text(json.dumps(line) + "\n")
    (example,) = read_examples(path)
    assert example.answer == '[{"name": "t", "arguments": "{\\"a\\": 1}"}]'
    assert example.tools == (TOOL,)
    assert example.message["tool_calls"][0]["function"] == CALL["function"]
    assert not {"functions", "function_call"} & {*example.fields, *example.message}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"test.jsonl:2: not JSON"),
        ("[" * 100_000, r"test.jsonl:2: nested too deeply"),
        (f'{GOOD[:-1]}, "tools": "t"}}', r"test.jsonl:2: tools is neither a list"),
        ("[]", r"test.jsonl:2: needs \"messages\""),
        ('{"messages": "hello"}', r"test.jsonl:2: needs \"messages\""),
        ('{"messages": []}', r"test.jsonl:2: the last message must be the assistant's"),
        ('{"messages": [{"role": "user", "content": "q"}]}', r"test.jsonl:2: the last message must be"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', r"test.jsonl:2: nothing comes before"),
        ('{"messages": [{"role": "user"}, {"role": "assistant", "content": null}]}', r":2: the last message"),
    ],
)
def test_bad_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_examples(path)


def test_bad_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(No such file"):
        read_examples(tmp_path / "missing.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no examples"):
        read_examples(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read_examples(tmp_path / "latin.jsonl")


def test_take_is_seeded_and_ordered() -> None:
    examples = [Example(({"role": "user", "content": str(i)},), "a") for i in range(50)]
    drawn = take(examples, 10, seed=1)
    places = [int(e.prompt[0]["content"]) for e in drawn]
    assert places == sorted(set(places))
    assert len(places) == 10
    assert take(examples, 10, seed=1) == drawn != take(examples, 10, seed=2)
    assert take(examples, None, seed=1) == take(examples, 50, seed=1) == examples
