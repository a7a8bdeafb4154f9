"""`edgeft data stats FILE... --recipe R`."""

from pathlib import Path

import click

from edgeft.cli._data import format_options
from edgeft.cli._options import json_option, load_recipe, set_option
from edgeft.cli._output import print_json, size, table


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft data stats`."""

    @click.command(name, help=f"{text} Steps and costs are those of training on all FILES with the recipe.")
    @click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
    @click.option(
        "--recipe", type=click.Path(path_type=Path), required=True, help="Its tokenizer, template and training."
    )
    @click.option("--price", type=click.FloatRange(min=0), help="Price of a million tokens elsewhere, to compare.")
    @set_option
    @format_options
    @json_option
    def stats_command(
        files: tuple[Path, ...],
        recipe: Path,
        price: float | None,
        overrides: tuple[str, ...],
        format_name: str | None,
        columns: tuple[str, ...],
        encoding: str,
        as_json: bool,
    ) -> None:
        from edgeft.console import terminal_log
        from edgeft.data.reading import parse_columns, read_examples
        from edgeft.data.stats import count_tokens, steps_of
        from edgeft.data.tokenizing import recipe_tokenizer
        from edgeft.extras import extra_needed
        from edgeft.preflight import Tokens, estimate_training, speed_of_this_machine

        loaded = load_recipe(recipe, overrides)
        if loaded.train is None:
            raise click.UsageError(f"{recipe} trains no chat model: it has no section `train`")
        with extra_needed("train"):
            tokenizer = recipe_tokenizer(loaded)
        log, mapped = terminal_log(), parse_columns(columns)
        counted = [
            count_tokens(tokenizer, read_examples(path, format_name, mapped, encoding), loaded.data.max_length, log)
            for path in files
        ]
        kept = sum(one.kept_tokens for one in counted)
        tokens = Tokens(train=kept, test_examples=0, per_test_example=0.0)
        cost = estimate_training(loaded, tokens, speed_of_this_machine(log))
        total = {
            "tokens_per_epoch": kept,
            "steps": steps_of(kept, loaded.train.batch_tokens, loaded.train.num_train_epochs),
            "minutes": cost.minutes,
            "ram_bytes": cost.ram_bytes,
            "disk_bytes": cost.disk_bytes,
        }
        if price is not None:
            total["price_per_epoch"] = round(kept * price / 1e6, 4)
        if as_json:
            print_json({"files": [one.as_dict() for one in counted], "total": total})
            return
        rows = [
            (
                one.file,
                *map(str, (one.examples, one.tokens, one.loss_tokens, one.p50, one.p95, one.longest, one.too_long)),
            )
            for one in counted
        ]
        click.echo(table(("file", "examples", "tokens", "learned", "p50", "p95", "longest", "too long"), rows))
        minutes = "unknown" if cost.minutes is None else f"about {cost.minutes:.1f}"
        click.echo(f"\ntokens in an epoch: {kept}\nsteps: {total['steps']}\nminutes: {minutes}")
        click.echo(f"memory: {size(cost.ram_bytes or 0)}\ndisk: {size(cost.disk_bytes or 0)}")
        if price is not None:
            click.echo(f"price of an epoch at {price:g} a million tokens: {total['price_per_epoch']:g}")

    return stats_command
