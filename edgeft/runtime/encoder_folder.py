"""What lies beside an encoder's graph, read without onnxruntime."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeft.errors import ModelError

CONFIDENCE = "confidence.json"
HEADS = ("ForSequenceClassification", "ForTokenClassification")
MODEL_TYPES = ("bert", "distilbert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "mpnet", "electra")
"""`model_type` of encoders, whatever their class."""


@dataclass(frozen=True)
class Confidence:
    """How sure a classifier is: its logits are divided by `temperature` before the softmax, which makes the
    probabilities of held-out texts right on average, and a label less probable than `threshold` is none."""

    temperature: float = 1.0
    threshold: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Content of confidence.json."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> "Confidence":
        """Of `folder`; the defaults where it has none. Raises ModelError when the file is damaged."""
        path = folder / CONFIDENCE
        if not path.is_file():
            return cls()
        try:
            content = json.loads(path.read_bytes())
            found = cls(float(content["temperature"]), float(content["threshold"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); export the model again") from None
        if not found.temperature > 0 or not 0 <= found.threshold <= 1:
            raise ModelError(f"{path}: needs a temperature above 0 and a threshold of 0 to 1; export the model again")
        return found


def is_encoder(path: Path) -> bool:
    """Whether config.json in the folder `path`, or beside the .onnx file `path`, is an encoder's: by class or
    model_type."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.suffix != ".onnx":
        return False
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    names = config.get("architectures") or ()
    decodes = config.get("is_decoder", False) or any("CausalLM" in name for name in names)
    return not decodes and (config.get("model_type") in MODEL_TYPES or any(name.endswith(HEADS) for name in names))
