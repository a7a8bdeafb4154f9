"""Options that several commands share, and what they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeft.recipe import Recipe

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

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
