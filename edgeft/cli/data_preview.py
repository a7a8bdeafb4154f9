"""`edgeft data preview FILE --recipe R`."""

from pathlib import Path

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option, load_recipe
from edgeft.cli._output import has_colour, print_json


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data preview`."""

    @click.command(
        name,
        help=f"{text} Without colours (a pipe, NO_COLOR) what is learned stands between ⟦ and ⟧.",
    )
    @click.argument("source", type=click.Path(path_type=Path))
    @click.option("--recipe", type=click.Path(path_type=Path), required=True, help="Its tokenizer and template.")
    @click.option("-n", "count", type=click.IntRange(min=1), default=3, show_default=True, help="Conversations.")
    @format_options
    @json_option
    def preview_command(
        source: Path,
        recipe: Path,
        count: int,
        format_name: str | None,
        columns: tuple[str, ...],
        encoding: str,
        as_json: bool,
    ) -> None:
        import sys
        from itertools import islice

        from edgeft.data.preview import preview
        from edgeft.data.reading import parse_columns, read_examples
        from edgeft.data.tokenizing import recipe_tokenizer
        from edgeft.errors import DataError
        from edgeft.extras import extra_needed

        loaded = load_recipe(recipe)
        with extra_needed("train"):
            tokenizer = recipe_tokenizer(loaded)
        reading = read_examples(source, format_name, parse_columns(columns), encoding)
        shown = [preview(tokenizer, example, source, line) for line, example in islice(reading.examples, count)]
        if not shown:
            raise DataError("\n".join(map(str, reading.problems[:20])) or f"{source}: no example in this file")
        if as_json:
            print_json([one.as_dict() for one in shown])
            return
        colour = has_colour(sys.stdout)
        for one in shown:
            click.echo(f"── {source}:{one.line} · {one.n_tokens} tokens, {one.n_learned} learned")
            for piece, learned in one.pieces:
                if learned:
                    piece = click.style(piece, fg="black", bg="green") if colour else f"⟦{piece}⟧"
                click.echo(piece, nl=False)
            click.echo()

    return preview_command
