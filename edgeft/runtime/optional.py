"""Opening the modules of this package that need a library of their own."""

import importlib
from types import ModuleType

from edgeft.errors import MissingExtra


def open_module(name: str, extra: str) -> ModuleType:
    """`edgeft.runtime.<name>`. Raises MissingExtra, naming the pip extra, when its library is not installed.

    A missing module of our own stays what it is: a typo must not read as a missing package.
    """
    try:
        return importlib.import_module(f"edgeft.runtime.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "edgeft":
            raise
        raise MissingExtra(
            f"this needs {error.name}, which is not installed; run: pip install 'edgeft[{extra}]'"
        ) from None
