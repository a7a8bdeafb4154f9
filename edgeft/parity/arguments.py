"""What is compared must be there: asked before libraries are loaded and a model is run for minutes."""

from collections.abc import Sequence
from pathlib import Path

from edgeft.errors import ModelError


def check_inputs(model_dir: Path, files: Sequence[Path]) -> None:
    """Raise ModelError that lists all that is not there."""
    problems = []
    if not (model_dir / "config.json").is_file():
        problems.append(f"{model_dir}: no model folder (it has no config.json)")
    for path in files:
        if not path.exists():
            beside = sorted(each.name for each in path.parent.glob("*.gguf")) if path.parent.is_dir() else []
            known = f"; {path.parent} has: {', '.join(beside)}" if beside else ""
            problems.append(f"{path}: no such file{known}")
    if problems:
        raise ModelError("\n".join(problems))
