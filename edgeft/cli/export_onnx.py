"""The part of `edgeft export` that writes ONNX folders."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeft.console import Log
    from edgeft.export.onnx.settings import Rounder

CALIBRATED = ("gptq", "feedback")
METHODS = ("rtn", "k_quant", "hqq", *CALIBRATED)
TASKS = ("text-generation-with-past", "feature-extraction", "text-classification", "token-classification")
DTYPES = ("int4", "int8", "int8_static", "fp16", "fp32")
MAX_TOKENS, CHUNK_SIZE = 16_384, 512
OPTIONS = (
    click.option("--dtype", "dtypes", multiple=True, type=click.Choice(DTYPES), help="ONNX: repeatable. [int4]"),
    click.option("--task", type=click.Choice(TASKS), help="ONNX: optimum's name. [what the model was trained for]"),
    click.option("--block-size", type=int, help="ONNX: weights that share a scale. [32]"),
    click.option("--asymmetric", is_flag=True, default=None, help="ONNX: with zero points."),
    click.option("--method", type=click.Choice(METHODS), help="ONNX: how weights are rounded. [k_quant]"),
    click.option("--accuracy-level", type=click.IntRange(0, 4), help="ONNX: 4 multiplies in int8, 1 in float32. [4]"),
    click.option("--head-dtype", type=click.Choice(DTYPES), help="ONNX: of embedding and head. [as --dtype]"),
    click.option("--activations", type=click.Choice(("float32", "float16")), help="ONNX: of int4, int8. [float32]"),
    click.option(
        "--vnni-only",
        is_flag=True,
        default=None,
        help="ONNX: int8 encoders with 8 bits in all weights, exact only with VNNI (or on ARM), in DTYPE-vnni.",
    ),
    click.option("--layout", type=click.Choice(("plain", "genai", "transformers.js")), help="ONNX: [genai]"),
    click.option("--min-ort", help="ONNX: oldest onnxruntime that must run it, as 1.22. [the oldest that can]"),
    click.option("--data", "examples", type=click.Path(path_type=Path), help="ONNX: chat JSONL to calibrate on."),
    click.option("--text", type=click.Path(path_type=Path), help="ONNX: text to calibrate on. [a built-in page]"),
    click.option("--exporter", type=click.Choice(("edgeft", "optimum")), help="ONNX: who writes it. [edgeft]"),
)


def onnx_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of ONNX; what is not given is None, or empty."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def export_onnx_folder(
    model: Path, out: Path, *, adapter: Path | None, threads: int | None, **options: Any
) -> list[dict[str, Any]]:
    """Write the folder(s) that `options`, as of OPTIONS, ask for; returns their records."""
    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed
    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    log = terminal_log()
    if options["exporter"] == "optimum":
        from edgeft.export.onnx.optimum import export_with_optimum

        return export_with_optimum(model, out, task=options["task"], log=log)
    with extra_needed("onnx,gguf"):
        from edgeft.export.folder import read_folder
        from edgeft.export.onnx.encoders import is_encoder

        if is_encoder(read_folder(model).config):
            if adapter is not None:
                raise click.UsageError("--adapter is for decoders; merge it into the encoder first")
            return _export_encoders(model, out, log=log, **options)
        return _export_decoders(model, out, adapter=adapter, threads=threads, log=log, **options)


def _export_decoders(
    model: Path,
    out: Path,
    *,
    adapter: Path | None,
    threads: int | None,
    log: "Log",
    dtypes: tuple[str, ...],
    task: str | None,
    method: str | None,
    examples: Path | None,
    text: Path | None,
    asymmetric: bool | None,
    exporter: str | None,
    vnni_only: bool | None,
    **options: Any,
) -> list[dict[str, Any]]:
    from edgeft.export.onnx.export import GENERATION, export_onnx
    from edgeft.export.onnx.settings import OnnxSettings

    if task not in (None, GENERATION):
        raise click.UsageError(f"a decoder is exported for {GENERATION}, not {task}")
    if vnni_only:
        raise click.UsageError("--vnni-only is for int8 encoders; a decoder's int8 is exact on every processor")
    fields = {name: value for name, value in options.items() if value is not None} | {"symmetric": not asymmetric}
    wanted: tuple[Any, ...] = dtypes or ("int4",)
    for dtype in wanted:
        OnnxSettings(dtype, **fields)  # what is wrong is said before anything is calibrated
    rounder = _rounder(method or "k_quant", model, examples, text, log)
    entries = [OnnxSettings(dtype, rounder=rounder, **fields) for dtype in wanted]
    return export_onnx(model, out, entries=entries, provenance={}, log=log, adapter=adapter, n_threads=threads)


def _rounder(method: Any, model: Path, examples: Path | None, text: Path | None, log: "Log") -> "Rounder":
    from importlib.resources import as_file, files

    from edgeft.quant.onnx_rounding import UNCALIBRATED

    if method not in CALIBRATED:
        if examples or text:
            raise click.UsageError(f"--method {method} needs no texts; {' and '.join(CALIBRATED)} do")
        return UNCALIBRATED[method]
    from edgeft.extras import extra_needed

    with extra_needed("train,gguf"), as_file(files("edgeft") / "assets" / "canary.txt") as page:
        from edgeft.export.onnx.export import tensor_sources
        from edgeft.quant.onnx_auto import rounder_of_folder

        sources = tensor_sources(model)
        data: dict[str, Any] = {"examples": examples, "text": text or page}
        return rounder_of_folder(
            model, sources, method, **data, max_tokens=MAX_TOKENS, chunk_size=CHUNK_SIZE, log=log
        )  # fmt: skip


def _export_encoders(
    model: Path,
    out: Path,
    *,
    log: "Log",
    dtypes: tuple[str, ...],
    task: Any,
    text: Path | None,
    vnni_only: bool | None,
    **options: Any,
) -> list[dict[str, Any]]:
    from edgeft.export.onnx.encoders import EncoderSettings, export_encoder

    layout: Any = options.pop("layout") or "plain"
    if given := [name for name, value in options.items() if value is not None]:
        raise click.UsageError(
            f"{', '.join(given).replace('_', '-')}: not for encoders, which have --dtype, --task, --layout and "
            "--vnni-only"
        )
    if layout == "genai":
        raise click.UsageError("--layout genai: onnxruntime-genai runs decoders; take plain or transformers.js")
    texts = [line for line in text.read_text("utf-8").splitlines() if line.strip()] if text else []
    records = []
    wanted: tuple[Any, ...] = dtypes or ("int8",)
    if vnni_only and (floats := [dtype for dtype in wanted if not dtype.startswith("int8")]):
        raise click.UsageError(f"--vnni-only is about int8 weights; {floats[0]} has none")
    for dtype in wanted:
        settings = EncoderSettings(dtype, layout=layout, reduce_range=not vnni_only)
        record = export_encoder(model, out / settings.name, settings=settings, log=log, task=task, texts=texts)
        records.append({**record, "file": f"{settings.name}/{record['file']}"})
    return records
