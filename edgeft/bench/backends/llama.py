"""GGUF files in llama.cpp, on the processor or, with `n_gpu_layers`, on a GPU that its build knows."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.bench.backends import Runner, Setup
from edgeft.bench.roofline import Work

if TYPE_CHECKING:
    from edgeft.runtime.gguf_format import Header

BY_NAME_ONLY = False
DISTRIBUTIONS = ("llama-cpp-python",)
KV_BYTES = 2  # llama.cpp keeps keys and values as F16 unless told otherwise
EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def accepts(path: Path) -> bool:
    """Any file that is no other backend's: what is wrong with it is the header check's to say."""
    return path.is_file() and path.suffix != ".onnx"


def open_model(path: Path, setup: Setup) -> Runner:
    """See `Backend.open_model`."""
    from edgeft import runtime

    return runtime.load(path, n_ctx=setup.n_ctx, n_threads=setup.n_threads, n_gpu_layers=setup.n_gpu_layers)


def work(path: Path, model: Runner) -> Work | None:
    """From the header: matrices count as multiply-adds; a table of embeddings is read a row at a time, and the
    head's rows are computed for the last prompt token only."""
    from edgeft.runtime.gguf_format import read_header

    header = read_header(path)
    looked_up = {EMBEDDING} if HEAD in header.tensors else set()
    once = {EMBEDDING, HEAD}
    return Work(
        weight_bytes=sum(tensor.n_bytes for name, tensor in header.tensors.items() if name not in looked_up),
        kv_bytes_per_position=_kv_bytes(header),
        prompt_multiply_adds=sum(
            math.prod(tensor.shape)
            for name, tensor in header.tensors.items()
            if name not in once and len(tensor.shape) > 1
        ),
    )


def _kv_bytes(header: "Header") -> int:
    """Bytes of keys and values of one position, all layers; 0 where the header does not say the shapes."""
    values: Mapping[str, Any] = {
        key.removeprefix(f"{header.architecture}."): value.value for key, value in header.values.items()
    }
    heads, width = values.get("attention.head_count"), values.get("embedding_length", 0)
    kv_heads = values.get("attention.head_count_kv", heads)
    if not isinstance(heads, int) or not isinstance(kv_heads, int) or heads == 0:
        return 0  # a number for each layer: hybrid models, whose other layers read something else
    lengths = (values.get(f"attention.{name}_length", width // heads) for name in ("key", "value"))
    return int(values.get("block_count", 0)) * kv_heads * sum(lengths) * KV_BYTES
