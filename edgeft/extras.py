"""Optional packages: a missing one names the pip extra that has it."""

from collections.abc import Iterator
from contextlib import contextmanager

from edgeft.errors import MissingExtra


@contextmanager
def extra_needed(extra: str) -> Iterator[None]:
    """Inside the block a missing package becomes MissingExtra, naming `extra`.

    A missing module of our own stays what it is: a typo must not read as a missing package.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module in ("", "edgeft"):
            raise
        raise MissingExtra(
            f'the Python package {module} is not installed; pip install "edgeft[{extra}]" '
            f'(in a checkout: pip install -c constraints.txt -e ".[{extra}]")'
        ) from error
