"""All GGUF files wanted of one model folder."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import UsageError
from edgeft.export.folder import Checkpoint, open_checkpoint
from edgeft.export.gguf.quantize import QUANTIZED_FTYPES, quantize_gguf
from edgeft.export.gguf.write import WRITTEN_FTYPES, write_gguf

LOSSLESS = {"F32": "F32", "F64": "F32", "F16": "F16", "BF16": "BF16"}
"""The type of a GGUF file that holds a checkpoint of this type without rounding (F64: as torch holds it)."""


def export_gguf(
    model_dir: Path,
    out: Path,
    *,
    name: str,
    ftypes: Sequence[str],
    provenance: Mapping[str, str],
    log: Log,
    texts: Iterable[str] = (),
) -> list[dict[str, Any]]:
    """Write `out/<name>-<ftype>.gguf` for each of `ftypes`, in order; returns one record a file.

    Quantized files are made from one that holds the weights without rounding, so that they are rounded once;
    it is written once, and kept only where it is among `ftypes`. A record has `file`, `format`, `ftype`,
    `bytes` and `fallbacks` (tensors llama.cpp stored in another type, see `quantize_gguf`). Raises UsageError
    for an unknown ftype before anything is written, and what `write_gguf` and `quantize_gguf` raise.
    """
    known = (*WRITTEN_FTYPES, *QUANTIZED_FTYPES)
    if unknown := [ftype for ftype in ftypes if ftype not in known]:
        raise UsageError(f"unknown ftype {', '.join(unknown)}; known: {', '.join(known)}")
    texts = list(texts)
    files = {ftype: out / f"{name}-{ftype}.gguf" for ftype in ftypes}

    def write(ftype: str, path: Path) -> None:
        write_gguf(model_dir, path, ftype=ftype, name=name, provenance=provenance, log=log, texts=texts)

    fallbacks: dict[str, dict[str, str]] = {}
    for ftype in ftypes:
        if ftype in WRITTEN_FTYPES:
            write(ftype, files[ftype])
    quantized = [ftype for ftype in ftypes if ftype in QUANTIZED_FTYPES]
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as temporary:
        if quantized:
            lossless = _lossless_ftype(open_checkpoint(model_dir))
            source = files.get(lossless, Path(temporary) / f"{lossless}.gguf")
            if lossless not in files:
                write(lossless, source)
        for ftype in quantized:
            fallbacks[ftype] = quantize_gguf(source, files[ftype], ftype)
            log.say(f"{ftype}: quantized from {lossless}{_told(fallbacks[ftype])}")
    return [
        {
            "file": path.name,
            "format": "gguf",
            "ftype": ftype,
            "bytes": path.stat().st_size,
            "fallbacks": fallbacks.get(ftype, {}),
        }
        for ftype, path in files.items()
    ]


def _lossless_ftype(checkpoint: Checkpoint) -> str:
    """The smallest ftype that holds every matrix without rounding."""
    needed = {LOSSLESS[tensor.dtype] for tensor in checkpoint.tensors.values() if len(tensor.shape) > 1}
    return needed.pop() if len(needed) == 1 else "F32"


def _told(fallbacks: Mapping[str, str]) -> str:
    if not fallbacks:
        return ""
    kinds = ", ".join(sorted(set(fallbacks.values())))
    return f"; {len(fallbacks)} tensors do not fit its blocks ({kinds})"
