"""`edgeft inspect FILE`: what a model file says about itself."""

from pathlib import Path
from textwrap import wrap
from typing import Any

import click

from edgeft.cli._options import Renamed, json_option
from edgeft.cli._output import print_json, size, table

WIDTH = 80


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft inspect`."""

    @click.command(
        name,
        help=f"{text}\n\nFILE is a GGUF file, a folder with an ONNX model or safetensors, a bundle, or a run's folder "
        "(the file that ships).",
    )
    @click.argument("file", type=click.Path(path_type=Path))
    @click.option("--tensors", is_flag=True, help="List every tensor.")
    @click.option("--load", is_flag=True, help="Load and run it as well, in a process of its own.")
    @click.option(
        "--timeout-s", "timeout", cls=Renamed, aliases=("--timeout",), type=click.FloatRange(0, min_open=True),
        help="Longest --load, in seconds. [120]",
    )  # fmt: skip
    @json_option
    def inspect_command(file: Path, tensors: bool, load: bool, timeout: float | None, as_json: bool) -> None:
        from dataclasses import asdict

        from edgeft.runs import find_model
        from edgeft.runtime.inspection import inspect_model
        from edgeft.runtime.onnx_file import holds_onnx

        file = find_model(file).model
        if load and file.is_dir() and not holds_onnx(file):
            raise click.UsageError("--load runs an exported model; a folder with safetensors is none")
        facts = inspect_model(file)
        if load:
            from edgeft.extras import extra_needed
            from edgeft.runtime.untrusted import TIMEOUT_S, probe

            with extra_needed("onnx" if holds_onnx(file) else "gguf"):
                facts["loaded"] = asdict(probe(file, timeout_s=timeout or TIMEOUT_S))
        if as_json:
            print_json(facts if tensors else {key: value for key, value in facts.items() if key != "tensors"})
        else:
            click.echo("\n".join(line[:WIDTH] for line in _lines(facts, tensors)))

    return inspect_command


def _lines(facts: dict[str, Any], tensors: bool) -> list[str]:
    lines = [f"{_short(Path(facts['path']).name, 40)}: {facts['format']}, {size(facts['bytes'])}"]
    lines += _section(str(facts["architecture"]), facts["hyperparameters"])
    if facts.get("defaults"):
        lines += _section("left out; llama.cpp takes", facts["defaults"])
    rows = [
        (kind, str(row["tensors"]), f"{row['weights'] / 1e6:.2f} M", size(row["bytes"]))
        for kind, row in facts["types"].items()
    ]
    lines += ["", *table(("type", "tensors", "weights", "size"), rows).splitlines()]
    lines += _tokenizer_lines(facts["tokenizer"])
    if facts["chat_template"]:
        text = " ".join(facts["chat_template"].split())
        lines += ["", f"chat template, {len(facts['chat_template'])} characters", f"  {_short(text, 76)}"]
    lines += _section("provenance", facts["provenance"])
    if "loaded" in facts:
        lines += _section("loaded", {key: value for key, value in facts["loaded"].items() if value is not None})
    odd = [line for each in facts["odd"] for line in wrap(f"odd: {each}", WIDTH, subsequent_indent="  ")]
    lines += ["", *odd] if odd else []
    if tensors:
        rows = [
            (_short(tensor["name"], 44), tensor["type"], "x".join(map(str, tensor["shape"])), size(tensor["bytes"]))
            for tensor in facts["tensors"]
        ]
        lines += ["", *table(("tensor", "type", "shape", "size"), rows).splitlines()]
    return lines


def _tokenizer_lines(tokenizer: dict[str, Any]) -> list[str]:
    if not tokenizer:
        return []
    plain = {key: value for key, value in tokenizer.items() if not isinstance(value, dict) and value}
    special = {
        f"{name} token": f"{token['id']} {token['text']!r}" for name, token in tokenizer.get("special", {}).items()
    }
    return _section("tokenizer", plain | special | tokenizer.get("flags", {}))


def _section(title: str, values: dict[str, Any]) -> list[str]:
    """A blank line, the title, and `  key  value` for each; nothing where there is nothing."""
    if not values:
        return []
    widest = min(44, max(map(len, values)))
    return [
        "",
        title,
        *(f"  {_short(key, 44):{widest}}  {_short(_shown(value), 78 - widest)}" for key, value in values.items()),
    ]


def _shown(value: Any) -> str:
    return f"{len(value)} values, {value[0]} first" if isinstance(value, list) and value else str(value)


def _short(text: str, width: int) -> str:
    text = "".join(character if character.isprintable() else "·" for character in text)
    return text if len(text) <= width else f"{text[: width - 1]}…"
