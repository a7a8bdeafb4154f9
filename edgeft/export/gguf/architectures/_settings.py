"""Settings of config.json that llama.cpp's graph has in its code, so that only one value can be written."""

from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.base import Config


def require(config: Config, key: str, *allowed: Any) -> None:
    """Raise ModelError unless `key` of config.json is one of `allowed`."""
    if config[key] not in allowed:
        values = " or ".join(repr(value) for value in allowed)
        raise ModelError(
            f"config.json: {key} {config[key]!r}: llama.cpp's graph for {config['model_type']} has only {values}"
        )


def changed(config: Config, fields: Config) -> Config:
    """`config` with other `fields`, and still of the class that says in words which key is missing."""
    return type(config)({**config, **fields})


def context_within(config: Config, window: int | None) -> int:
    """Tokens of context of a model whose sliding `window` llama.cpp does not have.

    Up to the window's length it makes no difference, so the context ends there.
    """
    context: int = config["max_position_embeddings"]
    return context if window is None else min(context, window)
