"""`edgeft recipe schema` and `edgeft recipe show RECIPE`."""

from pathlib import Path

import click

from edgeft.cli._examples import with_examples
from edgeft.cli._options import json_option, load_recipe, set_option
from edgeft.cli._output import print_json


def command(name: str, text: str) -> click.Command:
    """The click group `edgeft recipe`."""
    commands = {"schema": schema, "show": show}
    shown = {each: with_examples(command, f"{name} {each}") for each, command in commands.items()}
    return click.Group(name, help=text, commands=shown)


@click.command()
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from edgeft.recipe import Recipe

    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()})


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@set_option
@json_option
def show(recipe: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print RECIPE with every default filled in."""
    content = load_recipe(recipe, overrides).model_dump(mode="json")
    content = {name: value for name, value in content.items() if value is not None}
    if as_json:
        print_json(content)
        return
    import yaml

    click.echo(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), nl=False)
