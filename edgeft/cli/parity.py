"""`edgeft parity RECIPE`, or `edgeft parity MODEL_DIR FILE.gguf...` without a recipe."""

from pathlib import Path

import click

from edgeft.cli._options import Renamed, is_recipe, json_option, set_option, workdir_option
from edgeft.cli._output import print_json, show_verdict


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft parity`."""

    @click.command(
        name,
        help=f"{text} Exit code 3 when one moved beyond tolerance.\n\n"
        "TARGET is a recipe, the model folder that FILES were made from, or a run's folder (its trained model, and all "
        "its files unless FILES are named). FILES are model files, folders, bundles or runs' folders.",
    )
    @click.argument("target", type=click.Path(path_type=Path))
    @click.argument("files", nargs=-1, type=click.Path(path_type=Path))
    @click.option(
        "--data", "prompts", cls=Renamed, aliases=("--prompts",), type=click.Path(path_type=Path),
        help="Chat JSONL with the prompts. [a few built-in questions]",
    )  # fmt: skip
    @click.option("--n-gen", type=click.IntRange(1), default=32, show_default=True, help="Tokens generated greedily.")
    @click.option("--bisect", is_flag=True, help="Name the first key, token, tensor or layer that is wrong instead.")
    @click.option("--adapter", type=click.Path(path_type=Path), help="The peft adapter that FILES hold folded in.")
    @click.option("--force", is_flag=True, help="Compare again (with a recipe).")
    @set_option
    @workdir_option
    @json_option
    def parity_command(
        target: Path,
        files: tuple[Path, ...],
        prompts: Path | None,
        n_gen: int,
        bisect: bool,
        adapter: Path | None,
        force: bool,
        overrides: tuple[str, ...],
        workdir: Path,
        as_json: bool,
    ) -> None:
        if is_recipe(target):
            from edgeft.cli.stage import run_until

            if files or prompts or adapter:
                raise click.UsageError("with a recipe, files, prompts and adapter are the recipe's")
            if bisect:
                raise click.UsageError("--bisect wants the model folder and the files made from it")
            run_until(target, name, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
            return
        model, found = _sides(target, files)
        if bisect:
            if adapter:
                raise click.UsageError("--bisect compares weights with a folder; merge the adapter into one first")
            _bisect(model, found, prompts, as_json)
        else:
            _compare(model, found, prompts, n_gen, as_json, adapter)

    return parity_command


def _sides(target: Path, files: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    """The trained model's folder and the files to hold against it, all of which are there.

    Raises ModelError that lists all that is not, UsageError for a bundle as the first."""
    from edgeft.errors import ModelError, UsageError
    from edgeft.parity.arguments import check_inputs
    from edgeft.runs import exported_models, find_model, is_run, runs_there_are, trained_model
    from edgeft.runtime.bundle import is_bundle

    if is_bundle(target):
        raise UsageError(
            f"{target}: a bundle does not hold the model that was trained; name that first, "
            f"as in: edgeft parity runs/NAME {target}"
        )
    model = trained_model(target) if is_run(target) else target
    named = files or tuple(exported_models(target) if is_run(target) else ())
    found, problems = [], []
    for path in named:
        try:
            found.append(find_model(path).model)
        except ModelError as error:
            problems.append(str(error))
    try:
        check_inputs(model, ())
    except ModelError as error:
        problems.insert(0, str(error))
    if problems:
        known = "" if "there are: " in problems[-1] else runs_there_are(target)
        raise ModelError("\n".join(problems) + known)
    return model, tuple(found)


def _compare(
    model: Path, files: tuple[Path, ...], prompts: Path | None, n_gen: int, as_json: bool, adapter: Path | None
) -> None:
    from edgeft.console import terminal_log
    from edgeft.errors import ParityFailed
    from edgeft.extras import extra_needed
    from edgeft.quiet import quiet_libraries
    from edgeft.sections import Tolerance

    quiet_libraries()
    with extra_needed("gguf,train"):
        from edgeft.parity.files import compare_files
        from edgeft.parity.table import render_table

        limits = Tolerance().model_dump()
        parity = compare_files(
            model, files, prompts=prompts, n_gen=n_gen, limits=limits, log=terminal_log(), adapter=adapter
        )
    if as_json:
        print_json(parity)
    else:
        show_verdict(render_table(parity))
    if parity["first_bad"]:
        raise ParityFailed(f"not the model of {model}; first bad: {parity['first_bad']}")


def _bisect(model: Path, files: tuple[Path, ...], prompts: Path | None, as_json: bool) -> None:
    from edgeft.console import terminal_log
    from edgeft.errors import ParityFailed
    from edgeft.extras import extra_needed
    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    with extra_needed("gguf,train"):
        from edgeft.parity.files import bisect_files

        findings = bisect_files(model, files, prompts=prompts, log=terminal_log())
    bad = {file: finding for file, finding in findings.items() if finding}
    if as_json:
        print_json({file: finding and finding.to_json() for file, finding in findings.items()})
    else:
        for file, finding in findings.items():
            click.echo(f"{file}: {finding.message if finding else 'nothing found: it is the model of the folder'}")
    if bad:
        raise ParityFailed(f"not the model of {model}: {', '.join(bad)}")
