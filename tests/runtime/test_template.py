"""Chat templates: transformers' rendering is the oracle."""

from typing import Any

import pytest

from edgeft.errors import ModelError
from edgeft.runtime.template import ChatTemplate
from tests.tiny import CHATML, tiny_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi <there> & 'you' ünï"},
    {"role": "assistant", "content": "Hello.", "reasoning": None},
    {"role": "user", "content": "Bye", "name": None},
]
TOOLS = [{"type": "function", "function": {"name": "light", "description": "ä <on>", "parameters": {"a": [1]}}}]
TEMPLATES = {
    "chatml": CHATML,
    "blocks on their own lines": """{{ bos_token }}
    {% for message in messages %}
        {% if message.role == 'system' %}
[{{ message.content }}]
        {% else %}
{{ message.role }}: {{ message.content | trim }}{{ eos_token }}
        {% endif %}
    {% endfor %}
    {%- if add_generation_prompt %}assistant: {% endif %}""",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "tools as JSON": "{% if tools %}{{ tools | tojson }}\n{{ tools[0] | tojson(indent=2) }}{% endif %}",
    "missing keys": "{% for m in messages %}{{ m.reasoning is defined }}{{ m.get('name', '-') }}{% endfor %}",
    "undefined special token": "{{ unk_token }}{{ pad_token }}|",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "generation tags": """{% for m in messages %}
{% if m.role == 'assistant' %}
    {%- generation -%}
    {{ m.content }}{{ eos_token }}
    {%- endgeneration -%}
{% else %}
{{ m.content }}{% generation %}

x{% endgeneration %}
{% endif %}
{% endfor %}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_renders_as_transformers(name: str, tools: Any) -> None:
    tokenizer = tiny_tokenizer()
    variables = {
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    for prompt in (False, True):
        theirs = tokenizer.apply_chat_template(
            CHAT, tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=prompt, tokenize=False
        )
        ours = ChatTemplate(TEMPLATES[name], variables).render(CHAT, tools=tools, add_generation_prompt=prompt)
        assert ours == theirs


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[9].content.x }}", "does not accept these messages"),
        ("{{ messages[0].content + 1 }}", "does not accept these messages"),
        ("{{ messages.append(1) }}", "does not accept these messages"),
        ("{{ messages.__class__.__mro__ }}", "does not accept these messages"),
    ],
)
def test_a_template_that_refuses_is_an_error(source: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        ChatTemplate(source, {}).render(CHAT, tools=None, add_generation_prompt=True)


def test_invalid_jinja_is_an_error() -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate("{% if %}", {})


def test_the_date_is_todays() -> None:
    from datetime import date

    rendered = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", {}).render([], tools=None, add_generation_prompt=False)
    assert abs((date.fromisoformat(rendered) - date.today()).days) <= 1
