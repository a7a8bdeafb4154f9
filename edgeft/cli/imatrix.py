"""`edgeft imatrix MODEL --data train.jsonl -o imatrix.gguf`: which columns of the weights matter."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeft.cli._options import json_option, output_option
from edgeft.cli._output import print_json

if TYPE_CHECKING:
    from edgeft.quant.imatrix import Imatrix


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft imatrix`."""

    @click.command(
        name,
        help=f"{text}\n\nMODEL is a model folder (run in torch) or a GGUF file (run in llama.cpp). The result is "
        "llama.cpp's imatrix GGUF, which llama-quantize reads as well.",
    )
    @click.argument("model", type=click.Path(path_type=Path))
    @click.option("--data", "examples", type=click.Path(path_type=Path), help="Chat JSONL with the answers.")
    @click.option("--text", "general", type=click.Path(path_type=Path), help="General text. [a built-in page]")
    @output_option("File to write.", default="imatrix.gguf", show_default=True)
    @click.option("--max-tokens", type=click.IntRange(1), default=32_768, show_default=True)
    @click.option("--chunk-size", type=click.IntRange(2), default=512, show_default=True, help="Longest sequence.")
    @click.option("--seed", type=int, default=0, show_default=True, help="Draws the conversations.")
    @click.option("--process-output", is_flag=True, help="Collect for the output matrix too.")
    @json_option
    def imatrix_command(
        model: Path, examples: Path | None, general: Path | None, out: Path, as_json: bool, **limits: Any
    ) -> None:
        from edgeft.extras import extra_needed
        from edgeft.quiet import quiet_libraries

        quiet_libraries()
        with extra_needed("gguf" if model.is_file() else "gguf,train"):
            from edgeft.quant.imatrix import write_imatrix

            imatrix = _collect(model, examples, general, limits)
        write_imatrix(out, imatrix)
        facts = {
            "file": str(out),
            "tensors": len(imatrix.sums),
            "tokens": int(max(counts.max() for counts in imatrix.counts.values())),
            "datasets": list(imatrix.datasets),
        }
        if as_json:
            print_json(facts)
        else:
            click.echo(
                f"{out}: {facts['tensors']} tensors over {facts['tokens']} tokens of {', '.join(imatrix.datasets)}"
            )

    return imatrix_command


def _collect(model: Path, examples: Path | None, general: Path | None, limits: dict[str, Any]) -> "Imatrix":
    from importlib.resources import as_file, files

    from edgeft.console import terminal_log

    with as_file(files("edgeft") / "assets" / "canary.txt") as built_in:
        data: dict[str, Any] = {"examples": examples, "text": general or built_in}
        if model.is_file():
            from edgeft.quant.collect_gguf import importance_of_file

            return importance_of_file(model, **data, **limits, log=terminal_log())
        from edgeft.export.folder import open_checkpoint, read_folder
        from edgeft.export.gguf.architectures.layout import lay_out
        from edgeft.quant.collect import importance_of_folder

        layout = lay_out(read_folder(model), open_checkpoint(model))
        tensors = {rule.name: rule.sources for rule in layout.rules}
        return importance_of_folder(model, tensors, **data, **limits, log=terminal_log())
