"""`edgeft pack RUN -o app.edgeft`: a bundle of a finished run, or a layout another program loads."""

from pathlib import Path

import click

from edgeft.cli._options import json_option, output_option
from edgeft.cli._output import print_json, refuse_to_overwrite, size

LAYOUTS = ("ollama", "huggingface", "peft", "genai", "transformers.js")
ROLES = ("generation", "schema", "grammar", "labels", "calibration")


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft pack`."""

    @click.command(name, help=f"{text}\n\nRUN is the folder of a run, such as runs/home-assistant.")
    @click.argument("run", type=click.Path(path_type=Path))
    @output_option("File, or folder, to write.", required=True)
    @click.option("--folder", is_flag=True, help="Write a folder, not one file.")
    @click.option(
        "--file", "chosen", metavar="FTYPE", help="Exported file to pack, by ftype or name. [the one that ships]"
    )
    @click.option("--sign", type=click.Path(path_type=Path), metavar="KEY", help="Private key to sign with.")
    @click.option("--license", "licence", metavar="SPDX", help="Licence of the model, as an SPDX expression.")
    @click.option("--license-file", "texts", type=click.Path(path_type=Path), multiple=True, help="A licence text.")
    @click.option(
        "--with", "given", type=(click.Choice(ROLES), click.Path(path_type=Path)), multiple=True, metavar="ROLE FILE",
        help=f"Use this file for a role: {', '.join(ROLES)}.",
    )  # fmt: skip
    @click.option("--layout", type=click.Choice(LAYOUTS), help="Write a folder for this program, not a bundle.")
    @click.option(
        "--base", type=click.Path(path_type=Path), help="The base's folder: --layout peft writes a GGUF LoRA too."
    )
    @click.option("--force", is_flag=True, help="Overwrite a file that exists.")
    @click.option("--failed", is_flag=True, help="Pack even a run that missed its budgets.")
    @json_option
    def pack_command(
        run: Path,
        out: Path,
        folder: bool,
        chosen: str | None,
        sign: Path | None,
        licence: str | None,
        texts: tuple[Path, ...],
        given: tuple[tuple[str, Path], ...],
        layout: str | None,
        base: Path | None,
        force: bool,
        failed: bool,
        as_json: bool,
    ) -> None:
        from edgeft.bundle.contents import Extras
        from edgeft.bundle.pack import pack
        from edgeft.bundle.run import read_run

        refuse_to_overwrite(out, force and not out.is_dir())
        extras = Extras(chosen, licence, texts, dict(given), base)
        if layout is not None:
            from edgeft.bundle.layouts import write_layout

            if folder or sign or given or as_json:
                raise click.UsageError("--layout goes with --file, --base, --license and --license-file only")
            write_layout(read_run(run), layout, out, extras, failed=failed)
            click.echo(f"{out}: a folder for {layout}")
            return
        if base is not None:
            raise click.UsageError("--base goes with --layout peft only")
        manifest = pack(read_run(run), out, extras, key=sign, folder=folder, failed=failed)
        n_bytes = sum(record.bytes for record in manifest.files.values())
        if as_json:
            print_json({"path": str(out), "sha256": manifest.sha256, "bytes": n_bytes, "roles": manifest.roles})
        else:
            signed = ", signed" if sign else ""
            click.echo(f"{out}: {len(manifest.files)} files, {size(n_bytes)}{signed}")
            click.echo(f"manifest sha256: {manifest.sha256}")

    return pack_command
