"""Training texts that llama.cpp, without edgeft's runtime, tokenizes otherwise than training does."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.data.chat import Example
from edgeft.errors import ModelError
from edgeft.export.folder import read_folder

SHOWN = 5
"""Places named for each kind of text."""


def tell_limits(examples: Iterable[Example], base: Path, log: Log) -> dict[str, int]:
    """Say which examples hold a text beyond llama.cpp's tokenizer for the model folder `base`, with file and line;
    returns {why: examples}. Nothing is found for a base whose tokenizer cannot be exported, which export tells, and
    where there is no llama.cpp."""
    try:
        from edgeft.export.gguf.verify import known_limits
    except ImportError:
        return {}
    try:
        limits = known_limits(read_folder(base))
    except ModelError:
        return {}
    found: dict[str, list[str]] = {}
    for example in examples if limits else ():
        texts = list(_texts([example.messages, example.extra.get("tools")]))
        for limit in limits:
            if any(limit.concerns(text) for text in texts):
                found.setdefault(limit.why, []).append(f"{example.path}:{example.line}")
    for why, places in found.items():
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        log.say(
            f"warning: in GGUF files llama.cpp alone gives other ids to texts of {len(places)} examples ({why}): "
            f"{', '.join(places[:SHOWN])}{more}; edgeft's runtime gives those of training, other programs do not "
            "(docs/tokenizers.md)"
        )
    return {why: len(places) for why, places in found.items()}


def _texts(content: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        yield from _texts([*content.values()])
    elif isinstance(content, list | tuple):
        for one in content:
            yield from _texts(one)
