"""Options that several commands share, and what they stand for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeft.recipe import Recipe

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class Renamed(click.Option):
    """An option whose earlier names (`aliases`) work and are not shown: scripts written with them go on."""

    def __init__(self, names: Sequence[str], *, aliases: Sequence[str] = (), **settings: Any) -> None:
        super().__init__([*names, *aliases], **settings)
        self.aliases = frozenset(aliases)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The help without the aliases."""
        every, self.opts = self.opts, [name for name in self.opts if name not in self.aliases]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = every


def output_option(what: str, **settings: Any) -> Decorator:
    """`-o/--output`, as every command calls what it writes; the parameter is `out`."""
    path = click.Path(path_type=Path)
    return click.option("-o", "--output", "out", cls=Renamed, aliases=("--out",), type=path, help=what, **settings)


set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, e.g. seed=1 or train.learning_rate=1e-3.",
)
workdir_option = click.option(
    "--workdir",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Folder of all runs.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def is_recipe(path: Path) -> bool:
    """Whether a path given to a command names a recipe (and not a folder or a model file)."""
    return path.suffix in (".yaml", ".yml")


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> "Recipe":
    """Read a recipe; a folder stands for its recipe.yaml. Raises RecipeError."""
    from edgeft.recipe_reader import read_recipe

    return read_recipe(path / "recipe.yaml" if path.is_dir() else path, overrides)
