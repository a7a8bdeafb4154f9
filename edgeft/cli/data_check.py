"""`edgeft data check FILE...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option, load_recipe
from edgeft.cli._output import print_json, table

if TYPE_CHECKING:
    from edgeft.data.check.engine import Checked
    from edgeft.recipe import Recipe

SHOWN_PER_CODE = 5


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data check`."""

    @click.command(
        name,
        help=f"{text} Several files are taken as the splits of one set: what stands in two of them is leakage. "
        "With --recipe, the recipe's files are checked too, and lengths are counted with its tokenizer and chat "
        "template. Exit code 3 when errors remain.",
    )
    @click.argument("files", nargs=-1, type=click.Path(path_type=Path))
    @click.option("--recipe", type=click.Path(path_type=Path), help="Recipe whose tokenizer, template and files count.")
    @click.option("--schema", type=click.Path(path_type=Path), help="JSON Schema every answer must fit.")
    @click.option("--near/--no-near", default=True, help="Search near duplicates.", show_default=True)
    @click.option("--pii/--no-pii", default=True, help="Look for personal data in a sample.", show_default=True)
    @click.option("--fix", is_flag=True, help="Write FILE.fixed.jsonl beside each file, without what can be mended.")
    @click.option("--html", type=click.Path(path_type=Path), help="Also write a report to this file.")
    @click.option("--codes", is_flag=True, help="List all codes.")
    @format_options
    @json_option
    def check_command(files: tuple[Path, ...], codes: bool, **options: Any) -> None:
        if codes:
            from edgeft.data.check.codes import CODES

            click.echo(table(("code", "what", "what to do"), [(c.code, c.title, c.advice) for c in CODES.values()]))
            return
        _check(files, **options)

    return check_command


def _check(
    files: tuple[Path, ...],
    *,
    recipe: Path | None,
    schema: Path | None,
    near: bool,
    pii: bool,
    fix: bool,
    html: Path | None,
    format_name: str | None,
    columns: tuple[str, ...],
    encoding: str,
    as_json: bool,
) -> None:
    from edgeft.artifact import write_atomic
    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed

    with extra_needed("data"):
        from edgeft.data.check.engine import Job, check
    from edgeft.data.check.fix import fix_file
    from edgeft.data.check.summary import as_dict
    from edgeft.data.reading import parse_columns
    from edgeft.errors import DataRejected

    log = terminal_log()
    paths, loaded = list(files), load_recipe(recipe) if recipe else None
    if loaded is not None and not paths:
        paths = _files_of(loaded)
    if not paths:
        raise click.UsageError("nothing to check; give files or --recipe")
    schema_text = None if schema is None else _schema_text(schema)
    columns_of = parse_columns(columns) or None
    checked = check(Job(paths, format_name, columns_of, schema_text, near, pii, encoding=encoding), log)
    if loaded is not None:
        from edgeft.data.check.tokens import check_tokens

        check_tokens(loaded, checked, log)
    if html is not None:
        from edgeft.data.check.html import html_report

        write_atomic(html, html_report(checked))
    if as_json:
        print_json(as_dict(checked))
    else:
        _print(checked)
    if fix:
        for summary in checked.files:
            fixed = fix_file(summary, checked, columns_of)
            log.say(f"{fixed.path}: {fixed.kept} lines kept, {fixed.dropped} dropped, {fixed.changed} cleaned")
    if checked.n_errors and not fix:
        raise DataRejected(f"{checked.n_errors} errors in {len(paths)} files; --fix mends some of them")


def _files_of(recipe: "Recipe") -> list[Path]:
    if recipe.data is None or recipe.data.prepare is not None:
        raise click.UsageError("the recipe's data is made by a script: run `edgeft data RECIPE`, or name the files")
    return [recipe.resolve(path) for name, path in recipe.data.files().items() if name != "unlabelled"]


def _schema_text(path: Path) -> str:
    import json

    from edgeft.data.check.tools import schema_fault
    from edgeft.errors import DataError

    try:
        text = json.dumps(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON Schema: {error}") from error
    if what := schema_fault(text):
        raise DataError(f"{path}: not a JSON Schema: {what}")
    return text


def _print(checked: "Checked") -> None:
    from edgeft.data.check.codes import CODES

    shown: dict[str, int] = {}
    for found in checked.findings:
        shown[found.code] = shown.get(found.code, 0) + 1
        if shown[found.code] <= SHOWN_PER_CODE:
            click.echo(str(found))
        elif shown[found.code] == SHOWN_PER_CODE + 1:
            click.echo(f"  … {checked.counts[found.code] - SHOWN_PER_CODE} more {found.code} (all with --json)")
    if checked.findings:
        click.echo()
    rows = [(code, CODES[code].severity, str(n), CODES[code].title) for code, n in sorted(checked.counts.items()) if n]
    if rows:
        click.echo(table(("code", "severity", "count", "what"), rows) + "\n")
    files = [
        (str(f.path), f.format, str(f.n_examples), str(f.n_lines), f"{f.n_chars / max(1, f.n_examples):.0f}")
        for f in checked.files
    ]
    click.echo(table(("file", "format", "examples", "lines", "characters each"), files))
