"""Running exported models: numpy and the backend's own library, never torch or transformers.

`load(path)` opens a file and returns a `Model`; nothing heavy is imported before that.
"""

from edgeft.runtime.loading import load
from edgeft.runtime.model import Answer, Classification, Message, Model, ToolCall

__all__ = ["Answer", "Classification", "Message", "Model", "ToolCall", "load"]
