"""Where a file leaves the model it was made from."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The first difference: what it is in, its name there, and a sentence for people."""

    kind: str
    """`key`, `token`, `template`, `tensor` or `layer`; of an ONNX graph also `node` or `provider`."""
    name: str
    """The GGUF key or tensor; for a token its text; for a layer llama.cpp's name of the value that differs; for an
    ONNX graph the tensor's or node's name in it."""
    message: str

    def to_json(self) -> dict[str, str]:
        """The three fields."""
        return dataclasses.asdict(self)
