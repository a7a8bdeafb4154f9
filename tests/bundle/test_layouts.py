"""Folders for other programs: what is in them, and a Modelfile read by the documented rules."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgeft.bundle.contents import Extras
from edgeft.bundle.layouts import write_layout
from edgeft.bundle.ollama import go_template, modelfile
from edgeft.bundle.run import read_run
from edgeft.data.tokenizing import TEMPLATES
from edgeft.errors import BundleError, GateFailed, UsageError
from edgeft.runtime.gguf_format import STRING, Header, Value
from tests.bundle.handmade import SYSTEM, make_run
from tests.bundle.test_diff import write_gguf

INSTRUCTIONS = {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES"}
PARAMETERS = {
    "num_ctx": int, "repeat_last_n": int, "repeat_penalty": float, "temperature": float, "seed": int, "stop": str,
    "num_predict": int, "top_k": int, "top_p": float, "min_p": float,
}  # fmt: skip
"""https://docs.ollama.com/modelfile: valid parameters and the types of their values."""
GO = shutil.which("go")
RENDER = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
	var in struct { Template string; Messages []Message }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	t := template.Must(template.New("").Option("missingkey=zero").Parse(in.Template))
	if err := t.Execute(os.Stdout, map[string]any{"Messages": in.Messages}); err != nil { panic(err) }
}
"""


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) by the documented grammar: comments, one instruction a line, or triple quotes."""
    found = []
    while text := text.lstrip("\n"):
        if text.startswith("#"):
            _, _, text = text.partition("\n")
            continue
        name, _, text = text.partition(" ")
        assert name.upper() in INSTRUCTIONS, name
        if text.startswith('"""'):
            value, closed, text = text[3:].partition('"""')
            assert closed
            _, _, text = text.partition("\n")
        else:
            value, _, text = text.partition("\n")
        found.append((name.upper(), value))
    return found


def header(template: str, **values: Any) -> Header:
    """The header of a file with this chat template, tokens `<s>` 0, `</s>` 1, and other metadata."""
    plain = {
        "tokenizer.chat_template": template, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [b"<s>", b"</s>", b"<|im_end|>"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1, **{f"tokenizer.ggml.{key}": value for key, value in values.items()},
    }  # fmt: skip
    return Header(Path("x.gguf"), 0, 3, 32, {key: Value(STRING, value, 0) for key, value in plain.items()}, {})


def test_the_ollama_folder(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf", template=TEMPLATES["chatml"]).read_bytes()
    (tmp_path / "MIT.txt").write_text('MIT "License"\n\nPermission is hereby granted.\n')
    run = read_run(make_run(tmp_path / "home", model=model))
    write_layout(run, "ollama", tmp_path / "out", Extras(license_files=(tmp_path / "MIT.txt",)))
    commands = parse_modelfile((tmp_path / "out" / "Modelfile").read_text())
    by_name = dict(commands)
    assert commands[0] == ("FROM", "./home-Q8_0.gguf")
    assert (tmp_path / "out" / "home-Q8_0.gguf").read_bytes() == model
    assert by_name["SYSTEM"] == SYSTEM
    assert by_name["LICENSE"] == (tmp_path / "MIT.txt").read_text()
    assert by_name["TEMPLATE"].endswith("<|im_start|>assistant\n")
    parameters = [value.split(" ", 1) for name, value in commands if name == "PARAMETER"]
    assert {name: PARAMETERS[name](value) for name, value in parameters} == {
        "temperature": 0.0, "num_ctx": 256, "num_predict": 8, "stop": '"<end>"',
    }  # fmt: skip
    assert "ollama create home -f Modelfile" in (tmp_path / "out" / "README.md").read_text()


def test_an_unknown_template_is_left_to_ollama() -> None:
    text = modelfile("x.gguf", header("{{ messages[0].content }}"), {}, {})
    assert "TEMPLATE" not in dict(parse_modelfile(text))
    assert "# No TEMPLATE" in text


@pytest.mark.parametrize("text", ['"""', 'a """ b', 'says "no"'])
def test_what_a_modelfile_cannot_express(text: str) -> None:
    with pytest.raises(UsageError, match="the system message holds"):
        modelfile("x.gguf", header(""), {"system": text}, {})


def test_a_bos_that_ollama_adds_and_the_template_does_not_is_said() -> None:
    assert "Ollama puts the token" in modelfile("x.gguf", header(TEMPLATES["chatml"], add_bos_token=True), {}, {})
    assert "Ollama puts the token" not in modelfile("x.gguf", header(TEMPLATES["plain"], add_bos_token=True), {}, {})


@pytest.mark.skipif(GO is None, reason="no go here")
@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("add_bos", [True, False])
def test_go_renders_what_jinja_renders(name: str, add_bos: bool, tmp_path: Path) -> None:
    """By Go's text/template, which Ollama renders with, against jinja2 as transformers sets it up."""
    from edgeft.runtime.template import ChatTemplate

    jinja = ChatTemplate(TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"})
    program = tmp_path / "render.go"
    program.write_text(RENDER)
    go = go_template(header(TEMPLATES[name], add_bos_token=add_bos))
    turns = [("system", "Be short."), ("user", "a\n{{ b }}"), ("assistant", "c <d>"), ("user", " é ")]
    for messages in (turns, turns[1:], turns[1:2]):
        content = {"Template": go, "Messages": [{"Role": role, "Content": text} for role, text in messages]}
        made = subprocess.run(
            ["go", "run", program], input=json.dumps(content).encode(), capture_output=True, check=True
        )
        wanted = jinja.render(
            [{"role": role, "content": text} for role, text in messages], tools=None, add_generation_prompt=True
        )
        assert made.stdout.decode() == (wanted.removeprefix("<s>") if add_bos else wanted)


def test_the_models_of_the_package_have_known_templates(repo_root: Path) -> None:
    jinja = (repo_root / "edgeft" / "assets" / "nano" / "chat_template.jinja").read_text()
    assert go_template(header(jinja)) == go_template(header(TEMPLATES["chatml"]))
    assert go_template(header(jinja.replace("<|im_start|>", "<|im_start|> "))) is None


def test_the_hugging_face_folder(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home"))
    write_layout(run, "huggingface", tmp_path / "out", Extras())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {*run.model.files, "README.md"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'library_name: "transformers"' in card
    assert "All numbers are of home-Q8_0.gguf, which was made of it." in card


def test_the_adapter_folder(tmp_path: Path) -> None:
    write_layout(read_run(make_run(tmp_path / "home", base="models/smol")), "peft", tmp_path / "out", Extras())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "provenance.json", "README.md"}
    assert json.loads((tmp_path / "out" / "provenance.json").read_bytes())["base_sha256"] == "cc" * 32


def test_another_base_than_the_adapter_was_trained_on(repo_root: Path, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home", base="models/smol"))
    with pytest.raises(UsageError, match="not the base the adapter was trained on"):
        write_layout(run, "peft", tmp_path / "out", Extras(base=repo_root / "edgeft" / "assets" / "nano"))
    assert not (tmp_path / "out").exists()


ENTRIES = [
    {"file": "int4-32/model.onnx", "format": "onnx", "dtype": "int4", "bytes": 9, "min_ort": "1.22"},
    {"file": "web/onnx/model_q4.onnx", "format": "onnx", "dtype": "int4", "bytes": 9, "min_ort": "1.22"},
    {"file": "home-F16.gguf", "format": "gguf", "ftype": "F16", "bytes": 4, "fallbacks": {}},
]
EXPORTED = {
    "int4-32/model.onnx": b"graph", "int4-32/genai_config.json": b"{}", "web/onnx/model_q4.onnx": b"web graph",
    "web/config.json": b"{}", "home-F16.gguf": b"GGUF",
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("genai", {"model.onnx", "genai_config.json", "README.md"}),
        ("transformers.js", {"onnx", "onnx/model_q4.onnx", "config.json", "README.md"}),
    ],
)
def test_onnx_folders(layout: str, names: set[str], tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home", entries=ENTRIES, exported=EXPORTED))
    write_layout(run, layout, tmp_path / "out", Extras())
    assert {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")} == names


@pytest.mark.parametrize(
    ("layout", "extras", "message"),
    [
        ("genai", Extras(), "has no genai_config.json"),
        ("transformers.js", Extras(file="F16"), "has no onnx"),
        ("ollama", Extras(file="nope"), "exported no such file"),
        ("ollama", Extras(license_files=(Path("missing.txt"),)), "missing.txt: cannot be read"),
    ],
)
def test_what_a_run_has_not(layout: str, extras: Extras, message: str, tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "m.gguf").read_bytes()
    run = read_run(make_run(tmp_path / "home", model=model))
    with pytest.raises(UsageError, match=message):
        write_layout(run, layout, tmp_path / "out", extras)
    assert not (tmp_path / "out").exists()


def test_a_failed_run_is_written_only_when_asked(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home", passed=False))
    with pytest.raises(GateFailed, match="missed budgets"):
        write_layout(run, "huggingface", tmp_path / "out", Extras())
    write_layout(run, "huggingface", tmp_path / "out", Extras(), failed=True)
    assert "It missed budgets of its recipe" in (tmp_path / "out" / "README.md").read_text()


def test_ollama_takes_no_onnx(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home", entries=ENTRIES, exported=EXPORTED))
    with pytest.raises(UsageError, match="Ollama loads GGUF files, not onnx"):
        write_layout(run, "ollama", tmp_path / "out", Extras(file="int4-32"))


def test_a_folder_is_not_written_over(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home"))
    write_layout(run, "huggingface", tmp_path / "out", Extras())
    with pytest.raises(BundleError, match="is there already"):
        write_layout(run, "huggingface", tmp_path / "out", Extras())
