"""All GGUF files wanted of one model folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import UsageError
from edgeft.export.gguf.lora import write_lora_gguf
from edgeft.export.gguf.stream import Rounder
from edgeft.export.gguf.tensor_types import FTYPES
from edgeft.export.gguf.write import write_gguf
from edgeft.quant.ggml import GgmlType
from edgeft.quant.imatrix import Imatrix


@dataclass(frozen=True)
class Settings:
    """How one file is quantized, beyond llama.cpp's rules for its ftype; see `write_gguf`.

    `ftype` is llama.cpp's file type behind a name of our own (`auto`): its rules hold for what `types` leaves
    out, and its number stands in the file. `model_dir` is a form of the model that was trained for this file alone.
    """

    imatrix: Imatrix | None = None
    types: Mapping[str, GgmlType] | None = None
    rounder: Rounder | None = None
    ftype: str | None = None
    model_dir: Path | None = None


def export_gguf(
    model_dir: Path,
    out: Path,
    *,
    name: str,
    ftypes: Sequence[str],
    provenance: Mapping[str, str],
    log: Log,
    texts: Iterable[str] = (),
    adapter: Path | None = None,
    settings: Mapping[str, Settings] | None = None,
    n_threads: int | None = None,
) -> list[dict[str, Any]]:
    """Write `out/<name>-<ftype>.gguf` for each of `ftypes`, in order; returns one record a file.

    Every file is made from the weights themselves, the LoRA adapter in `adapter` folded in; `settings` are by
    ftype. A record has `file`, `format`, `ftype`, `bytes` and `fallbacks` (tensors that do not fit the blocks of
    their type, see `write_gguf`). Raises UsageError for an unknown ftype before anything is written, and what
    `write_gguf` raises.
    """
    of = {ftype: (settings or {}).get(ftype, Settings()) for ftype in ftypes}
    if unknown := [ftype for ftype, setting in of.items() if (setting.ftype or ftype) not in FTYPES]:
        raise UsageError(f"unknown ftype {', '.join(unknown)}; known: {', '.join(FTYPES)}")
    texts = list(texts)
    records = []
    for ftype, setting in of.items():
        path = out / f"{name}-{ftype}.gguf"
        fallbacks = write_gguf(
            setting.model_dir or model_dir,
            path,
            ftype=setting.ftype or ftype,
            name=name,
            provenance=provenance,
            log=log,
            texts=texts,
            adapter=adapter,
            imatrix=setting.imatrix,
            types=setting.types,
            rounder=setting.rounder,
            n_threads=n_threads,
        )
        log.say(f"{ftype}: {path.name}{_told(fallbacks)}")
        size = path.stat().st_size
        records.append({"file": path.name, "format": "gguf", "ftype": ftype, "bytes": size, "fallbacks": fallbacks})
    return records


def export_lora(
    model_dir: Path, adapter: Path, out: Path, *, name: str, provenance: Mapping[str, str], log: Log
) -> list[dict[str, Any]]:
    """Write the adapter alone as `out/<name>-lora.gguf`; returns its record, as `export_gguf` does."""
    path = out / f"{name}-lora.gguf"
    write_lora_gguf(model_dir, adapter, path, name=name, provenance=provenance, log=log)
    size = path.stat().st_size
    return [{"file": path.name, "format": "gguf-lora", "ftype": "F32", "bytes": size, "fallbacks": {}}]


def _told(fallbacks: Mapping[str, str]) -> str:
    if not fallbacks:
        return ""
    kinds = ", ".join(sorted(set(fallbacks.values())))
    return f"; {len(fallbacks)} tensors do not fit its blocks ({kinds})"
