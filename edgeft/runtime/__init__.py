"""Running exported models: numpy and the backend's own library, never torch or transformers.

`load(path)` opens a file and returns a `Model`; nothing heavy is imported before that.
"""

from edgeft.runtime.model import Message, Model, load

__all__ = ["Message", "Model", "load"]
