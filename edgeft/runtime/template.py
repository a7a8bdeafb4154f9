"""Chat templates, rendered as transformers renders them (`utils/chat_template_utils.py`), without it."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgeft.conversation.canonical import canonical_tools
from edgeft.conversation.fields import THOUGHTS, listed
from edgeft.conversation.renderer import Renderer
from edgeft.errors import ModelError

GENERATION_TAG = re.compile(r"{%([-+]?)\s*(end)?generation\s*([-+]?)%}")


class ChatTemplate:
    """A compiled template. `source` is Jinja; `variables` (`bos_token`, …) are visible in every rendering."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """Raises ModelError when `source` is not valid Jinja."""
        self.variables = dict(variables)
        try:
            self.template = _environment().from_string(without_generation_tags(source))
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template is not valid Jinja: {error}") from None
        self._renderer = Renderer(self._render)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
    ) -> str:
        """The text of a chat, its tool data brought into the form this template wants.

        Keys of a message that are None are left out, as transformers does. Raises ModelError when the template refuses
        the messages.
        """
        try:
            return self._renderer.render(messages, tools, add_generation_prompt=add_generation_prompt)
        except (jinja2.TemplateError, TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"the model's chat template does not accept these messages: {error}") from None

    def check(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """Raises ModelError when a prompt of `messages` would lack a part of them or of `tools`.

        Thoughts of earlier answers may be left out: templates of models that think do so.
        """
        offered = canonical_tools(tools)
        if offered is not None and not isinstance(offered, list):
            raise ModelError("tools is neither a list nor the JSON text of one")
        lost = self._renderer.lost(messages, tools, add_generation_prompt=True, reasoning=False)
        if lost:
            raise ModelError(
                f"the model's chat template leaves out {listed(lost)}: the model would never see it; leave it away, or "
                "use a model whose template writes it"
            )

    def _render(self, messages: list[dict[str, Any]], tools: list[Any] | None, add_generation_prompt: bool) -> str:
        """The bare template, with the names that transformers gives to thoughts."""
        return self.template.render(
            messages=[_with_thoughts(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self.variables,
        )


def _with_thoughts(message: dict[str, Any]) -> dict[str, Any]:
    """Thoughts under every name templates read, as transformers does."""
    thoughts = next((message[name] for name in THOUGHTS if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def without_generation_tags(source: str) -> str:
    """`source` with `{% generation %}` blocks made plain.

    transformers uses the tag to find the assistant's tokens; no other renderer knows it. An `if true` keeps
    the white-space control around it.
    """
    return GENERATION_TAG.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", source)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escaping for HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
