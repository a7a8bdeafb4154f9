"""`edgeft data split FILE -o DIR`."""

from pathlib import Path

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option
from edgeft.cli._output import print_json, table


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data split`."""

    @click.command(
        name,
        help=f"{text} The place of an example follows from its content: the same file is always divided alike. Near "
        "duplicates, equal prompts and equal values of --group stay on one side.",
    )
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for the three files.")
    @click.option("--shares", default="80/10/10", show_default=True, help="train/validation/test.")
    @click.option("--stratify", metavar="FIELD", help="Keep the shares within each value; `answer` is the answer.")
    @click.option("--group", metavar="FIELD", help="Examples with one value of this field stay together.")
    @click.option("--seed", type=int, default=42, show_default=True)
    @format_options
    @json_option
    def split_command(
        source: Path,
        output: Path,
        shares: str,
        stratify: str | None,
        group: str | None,
        seed: int,
        format_name: str | None,
        columns: tuple[str, ...],
        encoding: str,
        as_json: bool,
    ) -> None:
        from edgeft.artifact import write_atomic
        from edgeft.data.importing import encode
        from edgeft.data.reading import parse_columns, read_examples
        from edgeft.errors import DataError, DataRejected
        from edgeft.extras import extra_needed

        with extra_needed("data"):
            from edgeft.data.split import SPLITS, parse_shares, split_examples
        parts = parse_shares(shares)
        reading = read_examples(source, format_name, parse_columns(columns), encoding)
        examples = [example for _, example in reading.examples]
        if not examples:
            raise DataError("\n".join(map(str, reading.problems[:20])) or f"{source}: no example in this file")
        places = split_examples(examples, parts, stratify=stratify, group=group, seed=seed)
        rows = []
        for split in SPLITS:
            lines = [encode(example) + "\n" for example, place in zip(examples, places, strict=True) if place == split]
            write_atomic(output / f"{split}.jsonl", "".join(lines).encode())
            rows.append((split, str(len(lines)), f"{len(lines) / len(examples):.1%}"))
        if as_json:
            print_json({split: int(n) for split, n, _ in rows})
        else:
            click.echo(table(("split", "examples", "share"), rows))
        if reading.problems:
            raise DataRejected("\n".join(map(str, reading.problems[:20])) + "\nwere left out")

    return split_command
