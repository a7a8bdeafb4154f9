"""Which tokens are learned."""

import json
from itertools import groupby
from pathlib import Path

import pytest

from edgeft.data.chat import parse_line
from edgeft.data.rendering import encode_chat, encode_prompt
from edgeft.errors import DataError, ModelError
from tests.tiny import tiny_tokenizer

TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "héllo  there\n"},
    {"role": "assistant", "content": '{"tool": null}'},
    {"role": "user", "content": "and 12 eggs 🥚"},
    {"role": "assistant", "content": "added  12 eggs"},
]
WITH_MARKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.mark.parametrize("messages", [TURNS, TURNS[:3], TURNS[1:3]], ids=["two answers", "system", "plain"])
def test_ids_and_mask_equal_transformers_own_assistant_mask(messages: list[dict[str, str]]) -> None:
    """Oracle: transformers' mask from `{% generation %}` marks, which our locating must not need."""
    tokenizer = tiny_tokenizer()
    ids, mask = encode_chat(tokenizer, messages)
    oracle = tokenizer.apply_chat_template(
        messages, chat_template=WITH_MARKS, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == list(oracle["input_ids"])
    assert mask == [bool(m) for m in oracle["assistant_masks"]]
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert learned == "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")


@pytest.mark.parametrize(("weights", "learned"), [((0, 1), [1]), ((1, 0), [0]), ((0, None), [1]), ((1, 1), [0, 1])])
def test_turns_of_weight_0_are_read_and_not_learned(weights: tuple[int | None, ...], learned: list[int]) -> None:
    """Same ids as without weights; of transformers' mask only the turns of weight 1 are left."""
    tokenizer = tiny_tokenizer()
    answers = [at for at, turn in enumerate(TURNS) if turn["role"] == "assistant"]
    messages = [dict(turn) for turn in TURNS]
    for at, weight in zip(answers, weights, strict=True):
        messages[at] |= {} if weight is None else {"weight": weight}
    ids, mask = encode_chat(tokenizer, messages)
    plain_ids, plain_mask = encode_chat(tokenizer, TURNS)
    assert ids == plain_ids
    runs = [list(run) for of_answer, run in groupby(range(len(ids)), key=plain_mask.__getitem__) if of_answer]
    assert [i for i, m in enumerate(mask) if m] == [i for turn in learned for i in runs[turn]]


def test_an_example_of_nothing_but_weight_0_is_refused() -> None:
    messages = [TURNS[1], {**TURNS[2], "weight": 0}]
    with pytest.raises(DataError, match="every answer has weight 0"):
        encode_chat(tiny_tokenizer(), messages)
    with pytest.raises(DataError, match="every answer has weight 0"):
        parse_line(json.dumps({"messages": messages}), Path("a.jsonl"), 1)
    with pytest.raises(DataError, match=r"weight is 0\.5; write 0"):
        parse_line(json.dumps({"messages": [TURNS[1], {**TURNS[2], "weight": 0.5}]}), Path("a.jsonl"), 1)


def _with_calls(opens: str = "", closes: str = "") -> str:
    """A template that shows tools, calls and results; `opens` and `closes` stand around what the assistant writes."""
    return (
        "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}" + opens + "{{ m['content'] or '' }}{% for call in m['tool_calls'] or [] %}"
        "<tool_call>{{ call['function']['name'] }} {{ call['function']['arguments'] }}</tool_call>{% endfor %}"
        "{{ '<|im_end|>' }}" + closes + "{{ '\n' }}{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


@pytest.mark.parametrize("content", [None, "", "Let me look."])
def test_tool_calls_are_learned_and_results_are_not(content: str | None) -> None:
    """Oracle: transformers' mask from `{% generation %}` marks in the same template."""
    tokenizer = tiny_tokenizer()
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        {"role": "user", "content": "is it sunny?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "yes, very"},
        {"role": "assistant", "content": "It is."},
    ]
    tokenizer.chat_template = _with_calls()
    ids, mask = encode_chat(tokenizer, messages, tools)
    oracle = tokenizer.apply_chat_template(
        messages, tools=tools, chat_template=_with_calls("{% generation %}", "{% endgeneration %}"), tokenize=True,
        return_dict=True, return_assistant_tokens_mask=True,
    )  # fmt: skip
    assert ids == list(oracle["input_ids"])
    assert mask == [bool(m) for m in oracle["assistant_masks"]]
    learned = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    called = '<tool_call>weather {"city": "Oslo"}</tool_call>'
    assert learned == f"{content or ''}{called}<|im_end|>It is.<|im_end|>"


def test_the_prompt_is_what_comes_before_the_first_learned_token() -> None:
    tokenizer = tiny_tokenizer()
    ids, mask = encode_chat(tokenizer, TURNS[:3])
    assert encode_prompt(tokenizer, TURNS[:2]) == ids[: mask.index(True)]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # Llama 3.1 style: the last turn alone is rendered in full
        ("{% for m in messages %}{{ m.content if loop.last else 'x' }}{% endfor %}", "rewrites earlier turns"),
        # the answer's first letters stick to the prompt's last word
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "straddles the border",
        ),
    ],
)
def test_templates_that_cannot_be_learned_from(template: str, message: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": "turn on the kit"}, {"role": "assistant", "content": "chen light"}]
    with pytest.raises(ModelError, match=message):
        encode_chat(tokenizer, messages * 2 if "last" in template else messages)
