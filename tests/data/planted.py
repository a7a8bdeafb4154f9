# ruff: noqa: E501
"""A set with planted defects: for every code, five cases made by code; and clean lines of many kinds."""

import json
import random
from typing import Any

Line = bytes
WORDS = (
    "amber basin cedar delta ember fjord grove heron inlet jetty knoll larch meadow north ocean pebble quartz river "
    "spruce thistle umber valley willow yarrow zephyr copper lantern harbour marble velvet orchard saddle timber"
).split()
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
            "required": ["city"],
        },
    },
}


def sentence(seed: object, n: int = 14) -> str:
    """Different for each seed, and far from any other."""
    picker = random.Random(str(seed))
    return "Tell me about the " + " ".join(picker.choice(WORDS) for _ in range(n)) + f" of case {seed}."


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def bot(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def call(name: str = "get_weather", arguments: Any = '{"city": "Oslo"}', identity: str = "c1") -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def tooled(*calls: Any, seed: object, result: str | None = "c1", **more: Any) -> dict[str, Any]:
    messages = [user(sentence(seed)), bot("", tool_calls=list(calls))]
    if result is not None:
        messages.append({"role": "tool", "tool_call_id": result, "content": "sunny"})
    return {"messages": [*messages, bot(f"It is sunny, {sentence((seed, 2))}")], "tools": [WEATHER], **more}


def row(*messages: Any, **more: Any) -> Line:
    return json.dumps({"messages": list(messages), **more}, ensure_ascii=False).encode()


def pair(i: int, code: str, answer: str | None = None, question: str | None = None) -> Line:
    return row(user(question or sentence((code, i))), bot(answer or sentence((code, i, "answer"))))


def _older(i: int) -> Line:
    """Tool data as OpenAI had it in 2023, or packed in text."""
    line = tooled(call(), seed=("I313", i))
    answer, tools = line["messages"][1], line["tools"]
    if i < 3:
        answer["function_call"] = answer.pop("tool_calls")[0]["function"]
        line["messages"][2] = {"role": "function", "name": "get_weather", "content": "sunny"}
    if i in (1, 2):
        line |= {"functions": [tool["function"] for tool in line.pop("tools")]}
    if i == 2:
        answer["content"] = None
    if i == 3:
        line["tools"] = json.dumps(tools)
    if i == 4:
        answer["tool_calls"] = json.dumps(answer["tool_calls"])
    return _dumped(line)


def _padded(i: int) -> Line:
    """Tools and calls as Arrow gives them back, with the fields of all rows in each."""
    line = tooled(call(arguments={"city": "Oslo", "room": None}) if i == 4 else call(), seed=("W314", i))
    function = {**WEATHER["function"], "parameters": {**WEATHER["function"]["parameters"]}}
    properties = function["parameters"]["properties"]
    if i == 0:
        function["description"] = None
    elif i == 1:
        function["parameters"]["required"] = None
    elif i == 2:
        function["parameters"]["properties"] = {**properties, "room": None}
    elif i == 3:
        function["parameters"]["properties"] = {**properties, "city": {"type": "string", "enum": None}}
    return _dumped(line | {"tools": [{"type": "function", "function": function}]})


def clean_lines() -> list[Line]:
    """200 lines with nothing wrong: several turns, tools, weights, preference, Unicode, code, long and short."""
    lines = []
    for i in range(200):
        question, answer = sentence(("clean", i)), sentence(("clean answer", i), 10 + i % 40)
        kind = i % 10
        if kind == 0:
            lines.append(row({"role": "system", "content": "Answer briefly."}, user(question), bot(answer)))
        elif kind == 1:
            lines.append(row(user(question), bot(answer), user(sentence(("more", i))), bot(sentence(("end", i)))))
        elif kind == 2:
            lines.append(json.dumps(tooled(call(), seed=("clean", i))).encode())
        elif kind == 3:
            lines.append(row(user(question), bot(answer, weight=0), user("And?"), bot(sentence(("w", i)), weight=1)))
        elif kind == 4:
            lines.append(row(user(question), bot(answer), rejected=[bot(sentence(("bad", i)))]))
        elif kind == 5:
            lines.append(row(user(f"Größe, naïve café, 東京, Привет: {question}"), bot(f"Voilà — “{answer}” 😀")))
        elif kind == 6:
            lines.append(row(user(f"if a < b and x[0] > 3: {question}"), bot(f"```python\nprint({i})\n```\n{answer}")))
        elif kind == 7:
            lines.append(row(user([{"type": "text", "text": question}][0]["text"]), bot(f"1. {answer}\n2. {question}")))
        elif kind == 8:
            parallel = tooled(call(identity="a"), call(identity="b"), seed=("clean", i), result="a")
            parallel["messages"].insert(3, {"role": "tool", "tool_call_id": "b", "content": "rain"})
            lines.append(json.dumps(parallel).encode())
        else:
            lines.append(row({"role": "developer", "content": "Be kind."}, user(question), bot(answer), label="x"))
    return lines


def planted_lines() -> dict[str, list[Line]]:
    """Code -> five lines that must be reported with it."""
    return {code: [make(i) for i in range(5)] for code, make in MAKERS.items()}


def _broken(i: int) -> Line:
    good = pair(i, "E101")
    return [
        good[:-2],
        good[1:],
        good.replace(b":", b"", 1),
        b"hello " + good,
        good[:40] + good[41:].replace(b'"', b"'"),
    ][i]


def _not_utf8(i: int) -> Line:
    return (
        pair(i, "E102")
        .replace(b"amber", b"amb\xe9r")
        .replace(b"Tell", [b"\xff", b"\xc3(", b"\xe9", b"\x80", b"\xed\xa0\x80"][i], 1)
    )


def _placeholder(i: int) -> str:
    text = ["{{name}}", "[Insert name here]", "[Your Company]", "<YOUR NAME>", "{{ user.name }}"][i]
    return f"Dear {text}, {sentence(('W407', i))}"


REFUSALS = (
    "I'm sorry, but I can't do that today.", "I cannot provide this information to you.", "I'm unable to help here.",
    "I can’t assist with this request.", "I must decline to answer this question.",
)  # fmt: skip
BOILERPLATE = (
    "As an AI language model, I like rivers.", "My knowledge cutoff is near.", "The river is long. I hope this helps!",
    "Here it is. Is there anything else I can help you with?", "It is so. Feel free to ask more.",
)  # fmt: skip
PII = (
    "write to jane.doe@example.com", "card 4111 1111 1111 1111", "iban GB82 WEST 1234 5698 7654 32",
    "call me at +1 212 555 0187", "my ip is 203.0.113.42",
)  # fmt: skip
MOJIBAKE = (
    "schÃ¶n und grÃ¼n",
    "cafÃ© crÃ¨me",
    "l’Ã©tÃ© Ã  la plage",
    "itâ€™s a â€œquoteâ€\x9d"[:17],
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ Ð¼Ð¸Ñ€",
)
SPECIAL = ("<|im_start|>", "<|endoftext|>", "[INST]", "<start_of_turn>", "</s>")
IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


def q(code: str, i: int) -> dict[str, Any]:
    return user(sentence((code, i)))


def a(code: str, i: int) -> dict[str, Any]:
    return bot(sentence((code, i, "answer")))


def _dumped(value: Any) -> Line:
    return json.dumps(value).encode()


MAKERS: dict[str, Any] = {
    "E101": _broken,
    "E102": _not_utf8,
    "E103": lambda i: [b"[1, 2]", b"3", b"null", b"true", b'"hello"'][i],
    "E104": lambda i: pair(i, "E104").replace(b'"role"', b'"role": "x", "role"', 1 + i % 2),
    "E105": lambda i: pair(i, "E105").replace(b"{", [b'{"x": NaN, ', b'{"x": Infinity, ', b'{"x": -Infinity, ', b'{"x": [NaN], ', b'{"x": {"y": NaN}, '][i], 1),
    "E107": lambda i: json.dumps(pair(i, "E107").decode()).encode(),
    "E110": lambda i: pair(i, "E110").replace(b"Tell", [b"\\ud83d", b"\\udc00", b"x\\uD800x", b"\\ud83d Tell", b"\\udfff"][i], 1),
    "E201": lambda i: [b'{"prompt": "x"}', b"{}", b'{"messages": "x"}', b'{"messages": null}', b'{"messages": {"role": 1}}'][i],
    "E202": lambda i: _dumped({"messages": [], "n": i}),
    "E203": lambda i: row(q("E203", i), ["x", 3, None, [], True][i], a("E203", i)),
    "E204": lambda i: row({**q("E204", i), "role": ["bot", "human", "", None, 7][i]}, a("E204", i)),
    "E205": lambda i: row({"role": "user", **[{"content": 3}, {"content": None}, {}, {"content": {"a": 1}}, {"content": ["x"]}][i]}, a("E205", i)),
    "E206": lambda i: row(user(sentence(("E206", i))) | {"content": [{"type": "text", "text": sentence(("E206", i))}, IMAGE][i % 2 :]}, a("E206", i)),
    "E207": lambda i: row(*[q("E207", i)] * 1, {"role": "system", "content": "x"} if i % 2 else q("E207b", i)),
    "E208": lambda i: row(q("E208", i), a("E208", i), q("E208b", i)),
    "E209": lambda i: row(q("E209", i), {"role": ["system", "developer"][i % 2], "content": "x"}, a("E209", i)),
    "W210": lambda i: row(q("W210", i), *([q("W210b", i)] if i % 2 else [bot("Yes.")]), a("W210", i)),
    "W211": lambda i: row(bot("Hello!"), q("W211", i), a("W211", i)),
    "E212": lambda i: row(user(["", " ", "\n", "\t ", "\u3000"][i]), a("E212", i)),
    "E213": lambda i: row(q("E213", i), bot(["", " ", "\n", "\t ", "\u00a0"][i])),
    "W214": lambda i: row({"role": "system", "content": " " * i}, q("W214", i), a("W214", i)),
    "E215": lambda i: row(q("E215", i), a("E215", i) | {"weight": [2, 0.5, "1", -1, True][i]}),
    "E216": lambda i: row(q("E216", i), a("E216", i) | {"weight": 0}),
    "E217": lambda i: row({"role": "system", "content": "x"}, {"role": "system", "content": f"y{i}"}, q("E217", i), a("E217", i)),
    "E301": lambda i: _dumped(tooled(call(), seed=("E301", i)) | {"tools": [[{"type": "function"}, WEATHER], "x", [3], [{"function": {"name": ""}}, WEATHER], {"a": 1}][i]}),
    "E302": lambda i: _dumped(tooled(call(name=f"other_{i}"), seed=("E302", i))),
    "E303": lambda i: _dumped(tooled(call(arguments=["{", "city=Oslo", "", None, "[1]"][i]), seed=("E303", i))),
    "E304": lambda i: _dumped(tooled(call(arguments=["{}", '{"city": 3}', '{"city": "a", "days": 0}', '{"city": "a", "days": "x"}', '{"City": "a"}'][i]), seed=("E304", i))),
    "E305": lambda i: _dumped(tooled(call(), seed=("E305", i), result=None)),
    "E306": lambda i: row(q("E306", i), {"role": "tool", "content": "x", **({"tool_call_id": f"c{i}"} if i else {})}, a("E306", i)),
    "E307": lambda i: row(q("E307", i), a("E307", i), tools=[{"type": "function", "function": {"name": "f", "parameters": [{"type": "strin"}, {"type": 3}, {"required": "x"}, [1], {"properties": []}][i]}}]),
    "E308": lambda i: _dumped(tooled([{"type": "function"}, "x", {"id": "c1"}, {"function": {"name": "get_weather", "arguments": "{}"}}, {"id": 3, "function": {"name": "get_weather"}}][i], seed=("E308", i), result=None)),
    "E309": lambda i: _dumped(tooled(call(), call(), seed=("E309", i))),
    "E310": lambda i: _dumped(tooled(call(), call(identity="c2"), seed=("E310", i), parallel_tool_calls=False)),
    "I313": _older,
    "W314": _padded,
    "E312": lambda i: row(q("E312", i), a("E312", i), tools=[WEATHER, WEATHER]),
    "W401": lambda i: row(user(f"{MOJIBAKE[i]} {sentence(('W401', i))}"), a("W401", i)),
    "E402": lambda i: row(q("E402", i), bot(f"a{chr([0, 7, 8, 27, 127][i])}b {sentence(('E402', i))}")),
    "E403": lambda i: row(user(f"{sentence(('E403', i))} {SPECIAL[i]} now"), a("E403", i)),
    "W404": lambda i: row(q("W404", i), bot(f"caf\ufffd {sentence(('W404', i))}")),
    "W405": lambda i: row(user(f"a{chr([0x200B, 0x202E, 0x2066, 0xFEFF, 0x2060][i])}b {sentence(('W405', i))}"), a("W405", i)),
    "W406": lambda i: row(q("W406", i), bot([" x ", "\n", "\t", "", "  "][i] + sentence(("W406", i)) + ["", "", "", " ", "\n"][i])),
    "W407": lambda i: row(q("W407", i), bot(_placeholder(i))),
    "W408": lambda i: row(q("W408", i), bot(["a<br>b", "x &amp; y", "<p>z</p>", "it&#39;s", '<span class="k">q</span>'][i] + " " + sentence(("W408", i)))),
    "W409": lambda i: row(q("W409", i), bot(f"river {WORDS[i]} " * 60 + "end")),
    "W410": lambda i: row(q("W410", i), bot(f"```python\nx = {i}\n{sentence(('W410', i))}")),
    "W706": lambda i: row(q("W706", i), bot(f"{REFUSALS[i]} {sentence(('W706', i))}")),
    "W707": lambda i: row(q("W707", i), bot(BOILERPLATE[i])),
    "W708": lambda i: row(user(f"{sentence(('W708', i))} please {PII[i]} thanks"), a("W708", i)),
    "W710": lambda i: row(q("W710", i), bot(sentence(("W710", i)))),
    "E801": lambda i: row(q("E801", i), a("E801", i), rejected=[a("E801", i)]),
    "E802": lambda i: row(q("E802", i), a("E802", i), rejected=[[], None, [bot("")], [bot(" ")], "x"][i]),
    "E803": lambda i: row(q("E803", i), a("E803", i), rejected=[bot("x"), q("E803c", i)] if i % 2 else [q("E803c", i)]),
}  # fmt: skip
