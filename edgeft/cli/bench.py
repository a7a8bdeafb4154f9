"""`edgeft bench RECIPE`, or `edgeft bench FILE.gguf --data test.jsonl` on a device without the recipe."""

from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft bench`."""

    @click.command(name, help=f"{text}\n\nTARGET is a recipe (its exported file is measured) or a model file.")
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--data", type=click.Path(path_type=Path), help="Chat JSONL with the expected answers.")
    @click.option("--metric", "metrics", multiple=True, help="What is scored; repeatable. [exact_match]")
    @click.option("--limit", type=click.IntRange(1), help="Examples to score. [all]")
    @click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
    @click.option("--n-ctx", type=click.IntRange(8), help="Context window, in tokens.")
    @click.option("--n-threads", type=click.IntRange(1), help="CPU threads.")
    @click.option("--prompts", type=click.IntRange(1), help="Prompts timed.")
    @click.option("--n-gen", type=click.IntRange(2), help="Tokens generated after each timed prompt.")
    @click.option("--repetitions", type=click.IntRange(1), help="Times each prompt is timed.")
    @click.option("--out", type=click.Path(path_type=Path), help="Write bench.json there as well.")
    @click.option("--force", is_flag=True, help="Measure again (with a recipe).")
    @set_option
    @workdir_option
    @json_option
    def bench_command(
        target: Path, force: bool, overrides: tuple[str, ...], workdir: Path, as_json: bool, **settings: Any
    ) -> None:
        given = {key: value for key, value in settings.items() if value not in (None, ())}
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if given:
                raise click.UsageError("with a recipe, set these in its section `bench`, or with --set bench.…")
            run_until(target, name, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
        else:
            if "data" not in given:
                raise click.UsageError("a model file needs --data FILE: chat JSONL with the expected answers")
            _bench_file(target, as_json=as_json, **given)

    return bench_command


def _bench_file(
    file: Path,
    *,
    data: Path,
    as_json: bool,
    out: Path | None = None,
    metrics: tuple[str, ...] = ("exact_match",),
    **given: int,
) -> None:
    import json

    from edgeft.console import terminal_log
    from edgeft.extras import extra_needed
    from edgeft.report.build import build_report
    from edgeft.report.terminal import to_terminal

    with extra_needed("gguf"):
        from edgeft.artifact import write_atomic
        from edgeft.bench.examples import read_examples
        from edgeft.bench.file import BenchSettings, bench_file
        from edgeft.bench.latency import LatencyPlan

    timing = {key: given.pop(key) for key in ("prompts", "n_gen", "repetitions") if key in given}
    settings = BenchSettings(metrics=metrics, latency=LatencyPlan(**timing), **given)  # type: ignore[arg-type]
    result = bench_file(file, read_examples(data), settings, log=terminal_log()).to_json()
    if out is not None:
        write_atomic(out, json.dumps(result, indent=1) + "\n")
    if as_json:
        print_json(result)
    else:
        click.echo(to_terminal(build_report({"recipe": {"name": file.name}, "bench": result})), nl=False)
