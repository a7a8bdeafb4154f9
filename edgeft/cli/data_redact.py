"""`edgeft data redact FILE -o OUT`."""

from pathlib import Path

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option
from edgeft.cli._output import print_json, table


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data redact`."""

    @click.command(
        name,
        help=f"{text} The same value gets the same surrogate everywhere. Found are values with a defined form; names "
        "and places only with --ner MODEL, a spaCy model you have installed. Keys, roles, labels and the structure of "
        "JSON answers never change.",
    )
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write.")
    @click.option("--kinds", help="Only these, separated by commas.")
    @click.option("--ner", metavar="MODEL", help="An installed spaCy model that finds names and places.")
    @format_options
    @json_option
    def redact_command(
        source: Path,
        output: Path,
        kinds: str | None,
        ner: str | None,
        format_name: str | None,
        columns: tuple[str, ...],
        encoding: str,
        as_json: bool,
    ) -> None:
        from edgeft.console import terminal_log
        from edgeft.data.reading import parse_columns, read_examples
        from edgeft.data.redact import chosen_kinds, redact_examples

        reading = read_examples(source, format_name, parse_columns(columns), encoding)
        done = redact_examples(reading, output, chosen_kinds(kinds, ner), ner, terminal_log())
        if as_json:
            print_json(done.as_dict())
        elif done.found:
            rows = [(kind, str(n), str(done.different[kind])) for kind, n in done.found.most_common()]
            click.echo(table(("kind", "found", "different"), rows))
        if not as_json:
            click.echo(f"{done.changed} of {done.examples} examples changed, written to {output}", err=True)

    return redact_command
