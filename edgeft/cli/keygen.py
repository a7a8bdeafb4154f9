"""`edgeft keygen NAME`: a key pair to sign bundles with."""

from pathlib import Path

import click


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft keygen`."""

    @click.command(name, help=f"{text}\n\nWrites NAME.key, to be kept secret, and NAME.pub, to be given to readers.")
    @click.argument("stem", metavar="NAME", type=click.Path(path_type=Path))
    def keygen_command(stem: Path) -> None:
        from edgeft.bundle.signing import make_keys

        private, public = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".key", ".pub"))
        make_keys(private, public)
        click.echo(f"{private}: keep it secret\n{public}: give it to those who verify")

    return keygen_command
