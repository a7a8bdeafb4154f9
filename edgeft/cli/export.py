"""`edgeft export RECIPE`, or `edgeft export MODEL_DIR --out DIR` without a recipe."""

from pathlib import Path

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json, size, table


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft export`."""

    @click.command(name, help=f"{text}\n\nTARGET is a recipe or a Hugging Face model folder.")
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--ftype", "ftypes", multiple=True, help="llama.cpp's name of a quantization; repeatable. [F16]")
    @click.option("--out", type=click.Path(path_type=Path), help="Folder for the files of a model folder.")
    @click.option("--force", is_flag=True, help="Make the files again (with a recipe).")
    @set_option
    @workdir_option
    @json_option
    def export_command(
        target: Path,
        ftypes: tuple[str, ...],
        out: Path | None,
        force: bool,
        overrides: tuple[str, ...],
        workdir: Path,
        as_json: bool,
    ) -> None:
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if ftypes or out:
                raise click.UsageError("with a recipe, the files stand in its section `export`")
            run_until(target, name, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
        elif out is None:
            raise click.UsageError("a model folder needs --out DIR, where the files will be written")
        else:
            _export_folder(target, out, ftypes or ("F16",), as_json)

    return export_command


def _export_folder(model: Path, out: Path, ftypes: tuple[str, ...], as_json: bool) -> None:
    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed
    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    with extra_needed("gguf,train"):
        from edgeft.artifact import refused_writes
        from edgeft.export.gguf.export import export_gguf

        with refused_writes(out):
            out.mkdir(parents=True, exist_ok=True)
        name = model.absolute().name
        files = export_gguf(model, out, name=name, ftypes=ftypes, provenance={}, log=terminal_log())
    if as_json:
        print_json(files)
    else:
        rows = [(str(out / entry["file"]), entry["ftype"], size(entry["bytes"])) for entry in files]
        click.echo(table(("file", "ftype", "size"), rows))
