"""The door to the backends: one function opens every kind of model.

Only what the kind at hand needs is imported: an application starts with this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from edgeft.errors import ModelError
from edgeft.runtime.header import check_gguf
from edgeft.runtime.model import Model
from edgeft.runtime.optional import open_module

N_CTX = 1024


def load(
    path: str | Path,
    *,
    n_ctx: int | None = None,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    providers: Sequence[str] = (),
    cache_dir: str | Path | None = None,
) -> Model:
    """Open a bundle, a GGUF file in llama.cpp, or an ONNX file or the folder of one in onnxruntime.

    An encoder's ONNX folder gives an `encoder.EncoderModel`, which classifies and embeds lists of texts.
    `n_ctx` is in tokens (None: the bundle's, else 1024) and cut to the context the model was trained with.
    `n_threads` None means the backend's choice; llama.cpp: a thread for every 20 M parameters, at least one and at
    most one for every CPU this process may use. `n_gpu_layers` is llama.cpp's, `providers` are onnxruntime's execution
    providers (none: its own choice). `cache_dir` is where evaluated system prompts are kept between processes, a
    folder that only this user can write to (None: a bundle's own cache, and for other models nowhere). What a bundle
    says about sampling, schema, labels and calibration holds where a call does not say otherwise.

    Raises ModelError when there is no such model or it is plainly damaged, BundleError for a bundle that is not what
    its manifest says, RuntimeFault when the backend refuses the file, MissingExtra when the backend's package is not
    installed.
    """
    path = Path(path)
    settings: dict[str, Any] = {"n_threads": n_threads, "n_gpu_layers": n_gpu_layers, "providers": providers}
    if _may_be_bundle(path):
        from edgeft.runtime import bundle, defaults

        opened = bundle.open_bundle(path)
        own = defaults.bundle_defaults(opened)
        model = _open(opened.model, n_ctx=n_ctx or own.n_ctx or N_CTX, **settings)
        model.defaults = own
        cache_dir = cache_dir or opened.cache / "prefixes"
    else:
        model = _open(path, n_ctx=n_ctx or N_CTX, **settings)
    if cache_dir is not None:
        model.keep_prefixes(Path(cache_dir))
    return cast(Model, model)


def _may_be_bundle(path: Path) -> bool:
    """Whether to look for a manifest; kept apart so that a plain model file imports nothing for it."""
    if path.is_dir():
        return (path / "bundle.json").is_file()
    return path.suffix not in (".gguf", ".onnx") and path.is_file() and open_module("bundle", "gguf").is_bundle(path)


def _open(path: Path, *, n_ctx: int, n_threads: int | None, n_gpu_layers: int, providers: Sequence[str]) -> Any:
    if path.suffix == ".onnx" or (path.is_dir() and open_module("onnx_file", "onnx").holds_onnx(path)):
        _, folder = open_module("onnx_file", "onnx").find_file(path)
        if open_module("encoder_folder", "onnx").is_encoder(folder):
            encoder = open_module("encoder", "onnx")
            return encoder.EncoderModel(path, n_ctx=n_ctx, n_threads=n_threads, providers=providers)
        onnx = open_module("onnx", "onnx")
        return onnx.OnnxModel(path, n_ctx=n_ctx, n_threads=n_threads, providers=providers)
    if path.is_dir():
        raise ModelError(f"{path}: a folder, not a model file; export it first (edgeft export)")
    header = check_gguf(path)
    llama = open_module("llama", "gguf")
    return llama.LlamaModel(path, header=header, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
