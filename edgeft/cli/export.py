"""`edgeft export RECIPE`, or `edgeft export gguf MODEL_DIR --out DIR` without a recipe."""

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json, size, table

FORMAT = "gguf"


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft export`."""

    @click.command(
        name, help=f"{text}\n\nTARGET is a recipe or a Hugging Face model folder; {FORMAT} may stand before it."
    )
    @click.argument("words", nargs=-1, required=True, metavar=f"[{FORMAT}] TARGET")
    @click.option("--ftype", "ftypes", multiple=True, help="llama.cpp's name of a quantization; repeatable. [F16]")
    @click.option("--out", type=click.Path(path_type=Path), help="Folder for the files of a model folder.")
    @click.option("--adapter", type=click.Path(path_type=Path), help="Folder of a LoRA adapter to fold into the model.")
    @click.option("--adapter-only", is_flag=True, help="Write the adapter alone, for llama.cpp to load with the base.")
    @click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (llama.cpp's file).")
    @click.option("--threads", type=click.IntRange(min=1), help="Threads that quantize. [one a core]")
    @click.option("--force", is_flag=True, help="Make the files again (with a recipe).")
    @set_option
    @workdir_option
    @json_option
    def export_command(
        words: tuple[str, ...],
        ftypes: tuple[str, ...],
        out: Path | None,
        adapter: Path | None,
        adapter_only: bool,
        imatrix: Path | None,
        threads: int | None,
        force: bool,
        overrides: tuple[str, ...],
        workdir: Path,
        as_json: bool,
    ) -> None:
        target = _target(words)
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if ftypes or out or adapter or adapter_only or imatrix or threads:
                raise click.UsageError("with a recipe, the files stand in its section `export`")
            run_until(target, name, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
            return
        if out is None:
            raise click.UsageError("a model folder needs --out DIR, where the files will be written")
        if adapter_only and (adapter is None or ftypes or imatrix):
            raise click.UsageError("--adapter-only needs --adapter DIR, and takes no --ftype or --imatrix: LoRA is F32")
        files = _export_folder(target, out, ftypes or ("F16",), adapter, adapter_only, imatrix, threads)
        if as_json:
            print_json(files)
        else:
            rows = [(str(out / entry["file"]), entry["ftype"], size(entry["bytes"])) for entry in files]
            click.echo(table(("file", "ftype", "size"), rows))

    return export_command


def _target(words: tuple[str, ...]) -> Path:
    """The recipe or folder: the last word; one before it can only be the format."""
    if len(words) > 2 or (len(words) == 2 and words[0] != FORMAT):
        raise click.UsageError(f"one TARGET, with nothing but {FORMAT} before it; got {' '.join(words)}")
    return Path(words[-1])


def _export_folder(
    model: Path,
    out: Path,
    ftypes: tuple[str, ...],
    adapter: Path | None,
    adapter_only: bool,
    imatrix: Path | None,
    threads: int | None,
) -> list[dict[str, Any]]:
    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed
    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    with extra_needed("gguf,train"):
        from edgeft.artifact import refused_writes
        from edgeft.export.gguf.export import Settings, export_gguf, export_lora

        with refused_writes(out):
            out.mkdir(parents=True, exist_ok=True)
        name, log = model.absolute().name, terminal_log()
        if adapter_only and adapter is not None:
            return export_lora(model, adapter, out, name=name, provenance={}, log=log)
        settings = {}
        if imatrix is not None:
            from edgeft.quant.imatrix import read_imatrix

            settings = dict.fromkeys(ftypes, Settings(imatrix=read_imatrix(imatrix)))
        return export_gguf(
            model,
            out,
            name=name,
            ftypes=ftypes,
            provenance={},
            log=log,
            adapter=adapter,
            settings=settings,
            n_threads=threads,
        )
