"""The door to the backends: one function opens every kind of model."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from edgeft.errors import MissingExtra, ModelError
from edgeft.runtime.header import check_gguf
from edgeft.runtime.model import Model


def load(
    path: str | Path,
    *,
    n_ctx: int = 1024,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    providers: Sequence[str] = (),
    cache_dir: str | Path | None = None,
) -> Model:
    """Open a GGUF file in llama.cpp, or an ONNX file or the folder of one in onnxruntime.

    `n_ctx` is cut to the context the model was trained with. `n_threads` None means the backend's choice; llama.cpp:
    a thread for every 20 M parameters, at least one and at most one for every CPU this process may use.
    `n_gpu_layers` is llama.cpp's, `providers` are onnxruntime's execution providers (none: its own choice).
    `cache_dir` is where evaluated system prompts are kept between processes (none: they are evaluated each time).
    Raises ModelError when there is no such model or it is plainly damaged, RuntimeFault when the backend refuses it,
    MissingExtra when the backend's package is not installed.
    """
    path = Path(path)
    if path.suffix == ".onnx" or any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx")):
        onnx = _backend("edgeft.runtime.onnx", "onnx", path)
        model = onnx.OnnxModel(path, n_ctx=n_ctx, n_threads=n_threads, providers=providers)
    elif path.is_dir():
        raise ModelError(f"{path}: a folder, not a model file; export it first (edgeft export)")
    else:
        check_gguf(path)
        llama = _backend("edgeft.runtime.llama", "gguf", path)
        model = llama.LlamaModel(path, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
    if cache_dir is not None:
        model.keep_prefixes(Path(cache_dir))
    return cast(Model, model)


def _backend(module: str, extra: str, path: Path) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise ModelError(f"{path}: this edgeft has no runtime for {extra.upper()} models") from None
        if error.name is None or error.name.split(".")[0] == "edgeft":
            raise
        raise MissingExtra(
            f"this needs {error.name}, which is not installed; run: pip install 'edgeft[{extra}]'"
        ) from None
