"""Keeping other libraries' talk out of ours, and off the network."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edgeft.machine.silence import no_telemetry

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # nothing is fetched behind the user's back
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def quiet_libraries() -> None:
    """To be called before the heavy libraries are imported; what the user set in the environment stays."""
    no_telemetry()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for module in ("transformers", "peft", "torch"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)


@contextmanager
def uncompiled_imports() -> Iterator[None]:
    """Import heavy modules inside: what they hand to `torch.compile` at import stays plain Python.

    bitsandbytes (which peft imports wherever it is installed) decorates fall-backs for backends without kernels
    of their own with torch.compile; that alone loads all of torch's compiler, a third of the start-up time.
    """
    import torch

    compiler = torch.compile
    torch.compile = _as_it_is  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else _as_it_is
