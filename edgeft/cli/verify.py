"""`edgeft verify BUNDLE` and `edgeft unpack BUNDLE DIR`: is it whole, and who signed it?"""

from pathlib import Path

import click

from edgeft.cli._bundles import bundle_argument, key_option, signature_check
from edgeft.cli._options import json_option
from edgeft.cli._output import print_json


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft verify` or `edgeft unpack`."""
    return verify_command(name, text) if name == "verify" else unpack_command(name, text)


def verify_command(name: str, text: str) -> click.Command:
    """`edgeft verify`."""

    @click.command(name, help=f"{text}\n\nWithout --key only damage is found: anyone can make a whole bundle.")
    @bundle_argument
    @key_option
    @json_option
    def verify(bundle: Path, key: Path | None, as_json: bool) -> None:
        from edgeft.runtime.bundle import check_bundle

        manifest = check_bundle(bundle, signature_check(key))
        if as_json:
            print_json(
                {
                    "name": manifest.name,
                    "sha256": manifest.sha256,
                    "signed_by_key": key is not None,
                    "gate": manifest.gate,
                    "roles": dict(manifest.roles),
                    "files": len(manifest.files),
                }
            )
        else:
            signed = f"signed by {key}" if key else "signature not checked (--key)"
            click.echo(f"{bundle}: whole, {len(manifest.files)} files, {signed}")
            click.echo(
                f"budgets: {'none' if manifest.gate is None else 'met' if manifest.gate['passed'] else 'MISSED'}"
            )
            click.echo(f"manifest sha256: {manifest.sha256}")

    return verify


def unpack_command(name: str, text: str) -> click.Command:
    """`edgeft unpack`."""

    @click.command(name, help=text)
    @bundle_argument
    @click.argument("folder", type=click.Path(path_type=Path))
    @key_option
    def unpack(bundle: Path, folder: Path, key: Path | None) -> None:
        from edgeft.runtime.bundle import unpack_bundle

        manifest = unpack_bundle(bundle, folder, signature_check(key))
        click.echo(f"{folder}: {len(manifest.files)} files; the model: {folder / manifest.roles['model']}")

    return unpack
