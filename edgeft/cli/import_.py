"""`edgeft import FILE.gguf -o FOLDER`."""

from pathlib import Path

import click

from edgeft.cli._options import output_option

DTYPES = ("float32", "bfloat16")


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft import`."""

    @click.command(name, help=f"{text} Quantized weights are dequantized.")
    @click.argument("file", type=click.Path(path_type=Path))
    @output_option("New folder for the model.", required=True)
    @click.option("--dtype", type=click.Choice(DTYPES), default=DTYPES[0], show_default=True, help="Of the weights.")
    def import_command(file: Path, out: Path, dtype: str) -> None:
        from edgeft.console import terminal_log
        from edgeft.extras import extra_needed
        from edgeft.quiet import quiet_libraries

        quiet_libraries()
        with extra_needed("gguf,train"):
            from edgeft.export.gguf.dequantize import import_gguf

        import_gguf(file, out, dtype=dtype, log=terminal_log())
        click.echo(out)

    return import_command
