"""Which tokens are learned."""

import pytest

from edgeft.data.rendering import encode_chat, encode_prompt
from edgeft.errors import ModelError
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
