"""`edgeft diff A B`: what differs between two bundles or two GGUF files."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeft.cli._options import json_option
from edgeft.cli._output import print_json, table

if TYPE_CHECKING:
    from edgeft.bundle.diff import Difference

ROWS, WIDTH = 8, 40


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft diff`."""

    @click.command(name, help=f"{text}\n\nA and B are bundles or .gguf files, in any mixture.")
    @click.argument("a", type=click.Path(path_type=Path))
    @click.argument("b", type=click.Path(path_type=Path))
    @click.option("--all", "show_all", is_flag=True, help=f"Show every row, not {ROWS} of each part.")
    @json_option
    def diff_command(a: Path, b: Path, show_all: bool, as_json: bool) -> None:
        import tempfile

        from edgeft.bundle.diff import differences, open_side

        with tempfile.TemporaryDirectory(prefix="edgeft-") as cache:
            found = differences(open_side(a, Path(cache)), open_side(b, Path(cache)))
        if as_json:
            print_json({"same": not found, "differences": [asdict(one) for one in found]})
        elif not found:
            click.echo("no difference")
        else:
            click.echo("\n\n".join(_parts(found, show_all)))

    return diff_command


def _parts(found: "list[Difference]", show_all: bool) -> list[str]:
    """A table a part, cut after ROWS rows unless all are asked for."""
    parts: dict[str, list[Difference]] = {}
    for one in found:
        parts.setdefault(one.part, []).append(one)
    shown = []
    for part, rows in parts.items():
        kept = rows if show_all else rows[:ROWS]
        cells = [(_cut(one.name), _cut(one.before), _cut(one.after)) for one in kept]
        lines = table((part, "A", "B"), cells)
        shown.append(lines + (f"\n… and {len(rows) - len(kept)} more (--all)" if len(kept) < len(rows) else ""))
    return shown


def _cut(text: str | None) -> str:
    """One line of printable text; `-` for what is not there."""
    if text is None:
        return "-"
    text = "".join(character if character.isprintable() else "·" for character in text)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"
