"""`edgeft export RECIPE`, or `edgeft export gguf|onnx MODEL_DIR -o DIR` without a recipe."""

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import Renamed, is_recipe, json_option, output_option, set_option, workdir_option
from edgeft.cli._output import print_json, size, table
from edgeft.cli.export_onnx import export_onnx_folder, onnx_options

FORMATS = ("gguf", "onnx")


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft export`."""

    @click.command(
        name,
        help=f"{text}\n\nTARGET is a recipe or a Hugging Face model folder; the format of the files may stand "
        "before a folder. [gguf]",
    )
    @click.argument("words", nargs=-1, required=True, metavar=f"[{'|'.join(FORMATS)}] TARGET")
    @click.option("--ftype", "ftypes", multiple=True, help="llama.cpp's name of a quantization; repeatable. [F16]")
    @output_option("Folder for the files of a model folder.")
    @click.option("--adapter", type=click.Path(path_type=Path), help="Folder of a LoRA adapter to fold into the model.")
    @click.option("--adapter-only", is_flag=True, help="Write the adapter alone, for llama.cpp to load with the base.")
    @click.option("--imatrix", type=click.Path(path_type=Path), help="Importance matrix (llama.cpp's file).")
    @click.option(
        "--n-threads", "threads", cls=Renamed, aliases=("--threads",), type=click.IntRange(min=1),
        help="Threads that quantize. [one a core]",
    )  # fmt: skip
    @onnx_options
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
        **onnx: Any,
    ) -> None:
        form, target = _form_and_target(words)
        onnx_given = [option for option, value in onnx.items() if value not in (None, ())]
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if ftypes or out or adapter or adapter_only or imatrix or threads or onnx_given:
                raise click.UsageError("with a recipe, the files stand in its section `export`")
            run_until(target, name, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
            return
        if out is None:
            raise click.UsageError("a model folder needs -o DIR, where the files will be written")
        if adapter_only and (adapter is None or ftypes or imatrix):
            raise click.UsageError("--adapter-only needs --adapter DIR, and takes no --ftype or --imatrix: LoRA is F32")
        if form == "onnx":
            if ftypes or imatrix or adapter_only:
                raise click.UsageError("--ftype, --imatrix and --adapter-only are for gguf")
            files = export_onnx_folder(target, out, adapter=adapter, threads=threads, **onnx)
            _show(files, out, as_json)
            return
        if onnx_given:
            raise click.UsageError(f"{onnx_given[0]} is for onnx; write: edgeft {name} onnx {target} …")
        files = _export_folder(target, out, ftypes or ("F16",), adapter, adapter_only, imatrix, threads)
        _show(files, out, as_json)

    return export_command


def _form_and_target(words: tuple[str, ...]) -> tuple[str, Path]:
    """The format, and the recipe or folder: the last word."""
    if len(words) > 2 or (len(words) == 2 and words[0] not in FORMATS):
        raise click.UsageError(f"one TARGET, with nothing but {' or '.join(FORMATS)} before it; got {' '.join(words)}")
    return (words[0] if len(words) == 2 else FORMATS[0]), Path(words[-1])


def _show(files: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    if as_json:
        print_json(files)
        return
    rows = [(str(out / each["file"]), each.get("ftype") or each["dtype"], size(each["bytes"])) for each in files]
    click.echo(table(("file", "type", "size"), rows))


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
