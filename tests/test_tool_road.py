"""Tool data in OpenAI's form, from the file to calls of the exported model, on the embedded base."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeft import runtime
from edgeft.cli import edgeft
from edgeft.runtime import ToolCall

ROOMS, MINUTES = ("kitchen", "hall", "garage", "attic"), (2, 5, 8, 10)
LIGHT = {
    "name": "set_light",
    "description": "Turn a light on or off.",
    "parameters": {
        "type": "object",
        "properties": {"room": {"type": "string"}, "state": {"enum": ["on", "off"]}},
        "required": ["room", "state"],
    },
}
TIMER = {
    "name": "set_timer",
    "description": "Start a timer.",
    "parameters": {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]},
}
TOOLS = [{"type": "function", "function": function} for function in (LIGHT, TIMER)]


def requests() -> list[tuple[str, ToolCall]]:
    lights = [
        (f"turn {state} the light in the {room}", ToolCall("set_light", {"room": room, "state": state}))
        for room, state in product(ROOMS, ("on", "off"))
    ]
    timers = [(f"set a timer for {n} minutes", ToolCall("set_timer", {"minutes": n})) for n in MINUTES]
    return lights + timers


def example(asked: str, call: ToolCall, form: str) -> dict[str, Any]:
    """One line in a form of OpenAI's: of today, or of 2023."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments)}
    user = {"role": "user", "content": asked}
    if form == "2023":
        answer: dict[str, Any] = {"role": "assistant", "content": None, "function_call": function}
        return {"messages": [user, answer], "functions": [LIGHT, TIMER]}
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    return {"messages": [user, answer], "tools": TOOLS}


@pytest.mark.slow
def test_the_embedded_base_learns_to_call_tools(tmp_path: Path) -> None:
    """The same requests again: what was learned must come back through llama.cpp and `Answer.tool_calls`."""
    rows = [example(*pair, form="2023" if at % 3 == 0 else "today") for at, pair in enumerate(requests())]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(text, encoding="utf-8")
    recipe = {
        "name": "calls",
        "model": {"base": "edgeft/nano"},
        "data": {
            "train": "train.jsonl",
            "validation": "validation.jsonl",
            "test": "test.jsonl",
            "max_length": 256,
            "allow": ["E503"],
        },
        "train": {
            "method": "lora",
            "lora": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            "learning_rate": 3e-3,
            "num_train_epochs": 10,
            "batch_tokens": 1024,
        },
        "export": {"gguf": [{"ftype": "Q8_0"}]},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    workdir = tmp_path / "runs"
    done = CliRunner().invoke(
        edgeft, ["run", str(tmp_path / "recipe.yaml"), "--until", "export", "--workdir", str(workdir)]
    )
    assert done.exit_code == 0, done.output
    (file,) = workdir.rglob("*.gguf")
    with runtime.load(file, n_threads=1) as model:
        right = 0
        for asked, call in requests():
            answer = model.chat([{"role": "user", "content": asked}], tools=TOOLS)
            right += answer.tool_calls == (call,) and answer.finish_reason == "tool_calls"
        assert right >= len(requests()) - 1
        history = [{"role": "user", "content": "x"}, {**rows[1]["messages"][1]}, {"role": "tool", "content": "ok"}]
        assert '"arguments": {"room": "kitchen", "state": "off"}}</tool_call>' in model.render(history, tools=TOOLS)
