"""The chat template's contract: transformers and llama.cpp's own Jinja render the conversations as our runtime does."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edgeft.console import silent_log
from edgeft.errors import ModelError
from edgeft.export.gguf import write_gguf
from edgeft.export.gguf.contract import CONVERSATIONS, Conversation
from edgeft.export.gguf.verify import verify_vocabulary
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from tests.export.families import FAMILIES, save, write_header
from tests.tiny import CHATML, make_tiny_llama

TOOLS = os.environ.get("EDGEFT_LLAMA_TOOLS")
TEMPLATES = {
    "ChatML": CHATML,
    "with BOS and tools": """{{ bos_token }}{% if tools %}<|im_start|>tools
{{ tools | tojson }}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content | trim }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""",
    "without system": """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}
{{- raise_exception('no system role') }}{% endif %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}{{ '<|im_end|>' }}
{% endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}""",
}


def rendered(reader: Any, conversation: Conversation, prompt: bool) -> str | None:
    """What a reader with transformers' interface makes of a conversation; None where the template refuses."""
    try:
        return reader.apply_chat_template(
            conversation.messages, tools=conversation.tools, add_generation_prompt=prompt, tokenize=False
        )
    except Exception:  # jinja2's errors, of whatever kind the template raises
        return None


@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_renders_the_suite_as_the_file_does(name: str, tmp_path: Path) -> None:
    folder = save(FAMILIES["Llama 3"], tmp_path / "model", chat_template=TEMPLATES[name])
    file = write_header(folder, tmp_path / "model.gguf")
    verify_vocabulary(file, folder)
    theirs = AutoTokenizer.from_pretrained(folder.path)
    with LlamaVocabulary(file) as vocabulary:
        for conversation in CONVERSATIONS:
            for prompt in (False, True):
                text = rendered(theirs, conversation, prompt)
                if text is None:
                    with pytest.raises(ModelError):
                        vocabulary.render(conversation.messages, tools=conversation.tools, add_generation_prompt=prompt)
                    continue
                ours = vocabulary.render(conversation.messages, tools=conversation.tools, add_generation_prompt=prompt)
                assert ours == text
                assert vocabulary.tokenize(ours) == theirs(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ bos_token }}" + TEMPLATES["with BOS and tools"], "begins with '<s>' twice"),
        ("{{ raise_exception('never') }}", "takes no conversation at all"),
    ],
)
def test_a_template_no_reader_can_use_is_refused(template: str, said: str, tmp_path: Path) -> None:
    folder = save(FAMILIES["Llama 3"], tmp_path / "model", chat_template=template)
    with pytest.raises(ModelError, match=said):
        verify_vocabulary(write_header(folder, tmp_path / "model.gguf"), folder)


@pytest.mark.parametrize(("name", "adds"), [("ChatML", False), ("with BOS and tools", True)])
def test_the_vocabulary_adds_bos_only_where_the_template_begins_with_it(name: str, adds: bool, tmp_path: Path) -> None:
    folder = save(FAMILIES["Llama 3"], tmp_path / "model", chat_template=TEMPLATES[name])
    with LlamaVocabulary(write_header(folder, tmp_path / "model.gguf")) as vocabulary:
        assert vocabulary.tokenize("", add_special=True) == ([1] if adds else [])


@pytest.mark.slow
@pytest.mark.skipif(TOOLS is None, reason="EDGEFT_LLAMA_TOOLS names no folder with llama-server")
@pytest.mark.parametrize("name", TEMPLATES)
def test_llama_cpps_own_jinja_renders_the_suite_alike(name: str, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "model")
    (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    file = tmp_path / "model.gguf"
    write_gguf(folder, file, ftype="F32", name="tiny", provenance={}, log=silent_log())
    compared = 0
    with LlamaVocabulary(file) as vocabulary, served(file) as address:
        for conversation in CONVERSATIONS:
            # The server continues an answer at the end, and rewrites what a template refuses.
            if conversation.messages[-1]["role"] == "assistant":
                continue
            try:
                ours = vocabulary.render(conversation.messages, tools=conversation.tools)
            except ModelError:
                continue
            request = {"messages": conversation.messages, "tools": conversation.tools or []}
            assert post(f"{address}/apply-template", request) == ours, conversation.name
            compared += 1
    assert compared > len(CONVERSATIONS) // 2


def post(address: str, content: dict[str, Any]) -> str:
    """The prompt llama.cpp's server makes."""
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["prompt"])


@contextlib.contextmanager
def served(file: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [f"{TOOLS}/llama-server", "-m", str(file), "--jinja", "--port", str(port), "-c", "256", "-t", "1"]
    log = file.with_suffix(".log").open("wb")
    with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and server.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
