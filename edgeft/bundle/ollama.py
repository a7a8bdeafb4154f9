"""A Modelfile for `ollama create` (https://docs.ollama.com/modelfile).

Ollama renders prompts with Go templates. For the chat templates edgeft itself gives to models the Go form is known
and written; for any other the line is left out, and Ollama chooses by the template inside the GGUF file.
"""

from collections.abc import Mapping
from typing import Any

from edgeft.data.chatml import PLAIN_CHATML
from edgeft.data.tokenizing import TEMPLATES
from edgeft.errors import UsageError
from edgeft.runtime.gguf_format import Header

GO_TEMPLATES = {
    "chatml": (
        "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
    ),
    "plain": (
        '⟨bos⟩{{- range .Messages }}{{ if eq .Role "assistant" }}{{ .Content }}⟨eos⟩{{ else }}{{ .Content }}\n'
        "{{ end }}{{ end }}"
    ),
}
"""By the name in `data.tokenizing.TEMPLATES`. `.Messages` has the system message among them. ⟨eos⟩ stands for the text
of the end token, ⟨bos⟩ for that of the first, or nothing where llama.cpp puts it before every text by itself. None
offers tools: Go writes their JSON otherwise than the model has read it, and Ollama then refuses tools by itself."""
PARAMETERS = {
    "temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "n_ctx": "num_ctx",
    "max_new_tokens": "num_predict",
}  # fmt: skip
"""Keys of generation.json that are Ollama's under another name or the same."""
QUOTES = '"""'


def modelfile(file: str, header: Header, generation: Mapping[str, Any], licences: Mapping[str, str]) -> str:
    """The Modelfile of the GGUF `file` beside it. `licences` are texts by file name.

    Raises UsageError for a text that holds triple quotes, for which the format has no way.
    """
    lines = [f"FROM ./{file}"]
    template = go_template(header)
    if template is None:
        lines.append(
            "# No TEMPLATE: the Go form of this model's chat template is not known. Ollama compares the template in "
            "the GGUF file with those it knows; check what it chose with `ollama show --template`."
        )
    else:
        lines.append(f"TEMPLATE {_quoted('the chat template', template)}")
        if adds_bos(header) and "bos_token" not in str(header.get("tokenizer.chat_template")):
            lines.append(
                "# Ollama puts the token that begins a text before each prompt, as this GGUF file asks; the model's "
                "chat template does not. Answers may differ from those of edgeft."
            )
    lines += [f"PARAMETER {name} {generation[key]}" for key, name in PARAMETERS.items() if key in generation]
    end = _token(header, "eos_token_id")
    if end and '"' not in end and end.isprintable():
        lines.append(f'PARAMETER stop "{end}"')
    if generation.get("system"):
        lines.append(f"SYSTEM {_quoted('the system message', generation['system'])}")
    lines += [f"LICENSE {_quoted(name, text)}" for name, text in sorted(licences.items())]
    return "\n".join(lines) + "\n"


def go_template(header: Header) -> str | None:
    """The Go form of the file's chat template; None where it is not known."""
    known = {_one_spelling(jinja): name for name, jinja in [*TEMPLATES.items(), ("chatml", PLAIN_CHATML)]}
    name = known.get(_one_spelling(str(header.get("tokenizer.chat_template", ""))))
    if name is None:
        return None
    begin, end = ("" if adds_bos(header) else _token(header, "bos_token_id") or ""), _token(header, "eos_token_id")
    if name == "plain" and (end is None or "{{" in begin + end):
        return None
    return GO_TEMPLATES[name].replace("⟨bos⟩", begin).replace("⟨eos⟩", end or "")


def adds_bos(header: Header) -> bool:
    """Whether llama.cpp puts the first token before every text (`src/llama-vocab.cpp`: SentencePiece does)."""
    return bool(header.get("tokenizer.ggml.add_bos_token", header.get("tokenizer.ggml.model") == "llama"))


def _one_spelling(jinja: str) -> str:
    return jinja.strip().replace("'<|im_end|>' + '\\n'", "'<|im_end|>\\n'")


def _token(header: Header, key: str) -> str | None:
    token = header.get(f"tokenizer.ggml.{key}")
    tokens = header.get("tokenizer.ggml.tokens", ())
    return tokens[token].decode(errors="replace") if isinstance(token, int) and token < len(tokens) else None


def _quoted(what: str, text: str) -> str:
    if QUOTES in text or text.endswith('"'):
        raise UsageError(f"{what} holds {QUOTES} or ends with a quote, which a Modelfile cannot express; change it")
    return f"{QUOTES}{text}{QUOTES}"
