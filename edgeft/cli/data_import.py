"""`edgeft data import IN -o OUT.jsonl`."""

from pathlib import Path

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option
from edgeft.cli._output import print_json, refuse_to_overwrite


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data import`."""

    @click.command(
        name,
        help=f"{text} SOURCE may be .jsonl, .json, .csv, .tsv, .xlsx, .parquet or .txt, packed as .gz or .zst, or - "
        "for stdin. What the source holds and the result does not is told. Exit code 3 when rows had to be left out.",
    )
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="File to write, - for stdout.")
    @click.option("--to", default="chat", show_default=True, help="Format to write.")
    @click.option("--delimiter", metavar="CHARACTER", help="Of a CSV file, e.g. ; or tab. [seen from its rows]")
    @click.option("--force", is_flag=True, help="Overwrite the output if it exists.")
    @format_options
    @json_option
    def import_command(
        source: Path,
        output: Path,
        to: str,
        format_name: str | None,
        columns: tuple[str, ...],
        encoding: str,
        delimiter: str | None,
        force: bool,
        as_json: bool,
    ) -> None:
        from edgeft.data.importing import import_examples
        from edgeft.data.reading import parse_columns, read_examples
        from edgeft.errors import DataRejected

        refuse_to_overwrite(output, force)
        if delimiter is not None:
            delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
            if len(delimiter) != 1:
                raise click.BadParameter(f"{delimiter!r} is not one character", param_hint="--delimiter")
        reading = read_examples(source, format_name, parse_columns(columns), encoding, delimiter)
        done = import_examples(reading, output, to)
        result = {
            "format": done.format,
            "written": done.written,
            "notes": reading.notes,
            "changed": dict(done.losses),
            "left_out": [str(problem) for problem in done.problems],
        }
        if as_json:
            if output != Path("-"):
                print_json(result)
        else:
            lines = [f"{source}: {done.format}, {done.written} examples written to {output}"]
            lines += [f"  {note}" for note in reading.notes]
            lines += [f"  in {count} rows: {what}" for what, count in done.losses.most_common()]
            click.echo("\n".join(lines), err=True)
        if done.problems:
            shown = [str(problem) for problem in done.problems[:20]]
            more = len(done.problems) - len(shown)
            raise DataRejected("\n".join([*shown, *([f"… and {more} more rows"] if more else []), "were left out"]))

    return import_command
