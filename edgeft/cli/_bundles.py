"""Options of the commands that take a bundle."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeft.runtime.bundle_manifest import SignatureCheck

bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
key_option = click.option("--key", type=click.Path(path_type=Path), help="Public key that must have signed it.")


def signature_check(key: Path | None) -> "SignatureCheck | None":
    """What checks the signature by the public `key`; None when none is asked for."""
    if key is None:
        return None
    from edgeft.bundle.signing import signed_by

    return signed_by(key)
