"""Options the `edgeft data` commands share."""

import codecs
from collections.abc import Callable
from typing import Any

import click


def _encoding(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    if value == "auto":
        return value
    try:
        name = codecs.lookup(value).name
    except (LookupError, ValueError):
        raise click.BadParameter(f"unknown encoding {value!r}") from None
    return "utf-8-sig" if name == "utf-8" else name


def format_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--format, --map and --encoding."""
    options = (
        click.option(
            "--format", "format_name", metavar="NAME", help="Shape of the rows; seen from the data if left out."
        ),
        click.option(
            "--map", "columns", multiple=True, metavar="NAME=COLUMN", help="e.g. prompt=question, completion=a+b."
        ),
        click.option(
            "--encoding",
            default="auto",
            callback=_encoding,
            show_default=True,
            help="Of the text; auto: UTF-8, or guessed.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function
