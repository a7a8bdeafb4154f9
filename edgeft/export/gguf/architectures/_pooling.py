"""How a sentence-transformers folder makes one vector of a text's tokens.

The format: https://sbert.net/docs/package_reference/sentence_transformer/models.html (`modules.json` lists the
steps; the pooling step has a `config.json` in its own folder).
"""

import json
from pathlib import Path
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Metadata

MODES = {"mean": 1, "cls": 2, "lasttoken": 3}
"""`enum llama_pooling_type` in llama.h, under sentence-transformers' names."""

RANK = 4
"""The classification head's output instead of a vector."""

FLAGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
"""How files older than `pooling_mode` spell it: one flag each."""


def pooling_metadata(folder: Path) -> Metadata:
    """The `pooling_type` key of the model in `folder`; none where it is no sentence-transformers folder.

    Raises ModelError for a pooling llama.cpp does not have, and for steps behind it that change the vector.
    """
    mode = sentence_pooling(folder, "llama.cpp")
    return {} if mode is None else {"pooling_type": MODES[mode]}


def sentence_pooling(folder: Path, runtime: str) -> str | None:
    """The pooling, one of MODES, of the model in `folder`; None where it is no sentence-transformers folder.

    Raises ModelError, naming the `runtime`, for another pooling, and for steps behind it that change the vector.
    """
    kinds, modules = sentence_steps(folder)
    if others := set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"{folder / 'modules.json'}: a {', '.join(sorted(others))} step cannot be exported for {runtime}"
        )
    if "Pooling" not in kinds:
        return None
    path = folder / modules[kinds.index("Pooling")]["path"] / "config.json"
    pooling = _read(path)
    modes = [mode for flag, mode in FLAGS.items() if pooling.get(flag)] or [pooling.get("pooling_mode")]
    if len(modes) != 1 or modes[0] not in MODES:
        raise ModelError(f"{path}: pooling {' + '.join(map(str, modes))}: {runtime} has {', '.join(MODES)}")
    return str(modes[0])


def sentence_steps(folder: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The kind of each step of a sentence-transformers folder (`Transformer`, `Pooling`, `Normalize`, …) and what
    modules.json says of it; nothing where the folder is another."""
    if not (folder / "modules.json").is_file():
        return [], []
    modules = _read(folder / "modules.json")
    return [module["type"].rsplit(".", 1)[-1] for module in modules], modules


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error})") from None
