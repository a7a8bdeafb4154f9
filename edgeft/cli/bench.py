"""`edgeft bench RECIPE`, or `edgeft bench MODEL --data test.jsonl` on a device without the recipe."""

import json
from pathlib import Path
from typing import Any

import click

from edgeft.cli._options import Renamed, is_recipe, json_option, output_option, set_option, workdir_option
from edgeft.cli._output import print_json, show_verdict

TIMING = ("prompts", "n_gen", "repetitions", "cold_loads", "synthetic")
FILE = click.Path(path_type=Path, dir_okay=False)
NEEDS_DATA = "a model file needs --data FILE (chat JSONL with the expected answers) or --synthetic 128:64"
OF_A_RUN = (
    "metrics", "json_schema", "out_of_scope", "abstain_below", "slice_by", "limit", "max_new_tokens", "n_ctx",
    "n_threads",
)  # fmt: skip
INTERRUPTED = 130
PLACE = ("backend", "n_gpu_layers", "providers", "device", "cpus")


class Lengths(click.ParamType[tuple[int, int]]):
    """`128:64`: prompt tokens and generated tokens."""

    name = "N_PROMPT:N_GEN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """(n_prompt, n_gen); a usage error for any other form."""
        if isinstance(value, tuple):
            return value
        first, _, second = str(value).partition(":")
        if not (first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
            self.fail(f"{value!r} is not two counts of tokens; write them like 128:64", param, ctx)
        return int(first), int(second)


class Cores(click.ParamType[tuple[int, ...]]):
    """`0,2` or `0-3`: numbers of processor cores."""

    name = "CORES"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Sorted core numbers; a usage error for any other form."""
        if isinstance(value, tuple):
            return value
        cores: set[int] = set()
        for part in str(value).split(","):
            first, dash, last = part.strip().partition("-")
            if not first.isdecimal() or (dash and not last.isdecimal()):
                self.fail(f"{value!r} is not a list of cores; write one like 0,2 or 0-3", param, ctx)
            cores |= set(range(int(first), int(last or first) + 1))
        return tuple(sorted(cores))


def command(name: str, text: str) -> click.Command:
    """The click command `edgeft bench`."""

    @click.command(
        name,
        help=f"{text}\n\nTARGET is a recipe (its exported file is measured), a model "
        "file or folder, a bundle, or a run's folder: its test set, scores and lengths are taken where you name none.",
    )
    @click.argument("target", type=click.Path(path_type=Path))
    @click.option("--data", type=click.Path(path_type=Path), help="Chat JSONL with the expected answers.")
    @click.option("--metric", "metrics", multiple=True, help="What is scored; repeatable. [exact_match]")
    @click.option("--minutes", type=click.FloatRange(0, min_open=True), help="Longest time for all of it. [5]")
    @click.option("--limit", type=click.IntRange(1), help="Examples to score. [all]")
    @click.option("--slice-by", multiple=True, help="Field of the examples to list scores by; repeatable.")
    @click.option("--json-schema", type=FILE, help="Schema for the metric json_schema_valid.")
    @click.option("--out-of-scope", metavar="TEXT", help="The answer that abstains, for out_of_scope_recall.")
    @click.option("--abstain-below", type=click.FloatRange(0, 1), help="Less likely answers abstain as well.")
    @click.option("--against", type=FILE, help="Earlier bench.json or predictions.jsonl to pair the answers with.")
    @click.option("--speed-only", is_flag=True, help="Time the prompts of --data and score nothing.")
    @click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer, in tokens.")
    @click.option("--n-ctx", type=click.IntRange(8), help="Context window, in tokens.")
    @click.option("--n-threads", type=click.IntRange(1), help="CPU threads.")
    @click.option("--cpus", type=Cores(), help="Run on these cores only, e.g. 0,2 or 0-3.")
    @click.option(
        "--n-prompts", "prompts", cls=Renamed, aliases=("--prompts",), type=click.IntRange(1), help="Prompts timed."
    )
    @click.option("--n-gen", type=click.IntRange(2), help="Tokens generated after each timed prompt.")
    @click.option("--synthetic", type=Lengths(), multiple=True, help="Time random tokens instead, e.g. 128:64.")
    @click.option("--repetitions", type=click.IntRange(1), help="Times each prompt is timed.")
    @click.option("--cold-loads", type=click.IntRange(1), help="Processes that load the file from the disk.")
    @click.option("--backend", help="Runtime: llama, onnx or torch. [by the file]")
    @click.option("--n-gpu-layers", type=click.IntRange(-1), help="Layers llama.cpp puts on a GPU; -1: all.")
    @click.option("--provider", "providers", multiple=True, help="onnxruntime's execution provider; repeatable.")
    @click.option("--device", help="torch's device, e.g. cuda. [cpu]")
    @click.option("--roofline/--no-roofline", default=True, help="Hold the speed against this machine's limits.")
    @click.option("--timeout-s", type=click.FloatRange(1), help="A runtime silent for so long hangs. [120]")
    @output_option("Write bench.json there as well.")
    @click.option("--save-baseline", metavar="NAME", help="Store what was measured, to compare with later.")
    @click.option("--force", is_flag=True, help="Measure again (with a recipe).")
    @set_option
    @workdir_option
    @json_option
    def bench_command(
        target: Path, force: bool, overrides: tuple[str, ...], workdir: Path, as_json: bool, **settings: Any
    ) -> None:
        roofline, baseline = settings.pop("roofline"), settings.pop("save_baseline")
        given = {key: value for key, value in settings.items() if value not in (None, (), False)}
        if is_recipe(target):
            if given:
                raise click.UsageError("with a recipe, set these in its section `bench`, or with --set bench.…")
            _bench_recipe(target, baseline, force=force, overrides=overrides, workdir=workdir, as_json=as_json)
        else:
            file, given = _with_own(target, given)
            _bench_file(file, as_json=as_json, with_roofline=roofline, baseline=baseline, **given)

    return bench_command


def _bench_recipe(path: Path, baseline: str | None, *, overrides: tuple[str, ...], workdir: Path, **how: Any) -> None:
    from edgeft.cli._options import load_recipe
    from edgeft.cli.stage import run_until

    place = _baseline_path(baseline)
    run_until(path, "bench", overrides=overrides, workdir=workdir, **how)
    measured = workdir / load_recipe(path, overrides).name / "bench" / "bench.json"
    _save_baseline(place, json.loads(measured.read_bytes()))


def _with_own(target: Path, given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The model of `target`, and `given` behind what its run was measured with, or what its bundle says."""
    from edgeft.bundle.run import put
    from edgeft.runs import find_model, recipe_values
    from edgeft.runtime.bundle import is_bundle

    if not (given.keys() & {"data", "synthetic"} or (target.is_dir() and not is_bundle(target))):
        raise click.UsageError(NEEDS_DATA)
    found, own = find_model(target), {}
    if found.bundle is not None:
        generation = found.bundle.json("generation") or {}
        own = {key: generation[key] for key in ("n_ctx", "max_new_tokens") if key in generation}
    elif found.run is not None:
        sections: dict[str, Any] = {"bench": {}}
        for key, value in recipe_values(found.run, "bench").items():
            put(sections, key, value)
        own = {key: sections["bench"].get(key) for key in OF_A_RUN}
        own["data"] = found.run / "data" / "test.jsonl"
        if "synthetic" in given or not own["data"].is_file():
            del own["data"]
    given = {key: value for key, value in own.items() if value not in (None, (), [])} | given
    if not given.keys() & {"data", "synthetic"}:
        raise click.UsageError(NEEDS_DATA)
    return found.model, given


def _bench_file(
    file: Path,
    *,
    as_json: bool,
    with_roofline: bool,
    data: Path | None = None,
    speed_only: bool = False,
    out: Path | None = None,
    timeout_s: float = 120.0,
    minutes: float = 5.0,
    metrics: tuple[str, ...] = ("exact_match",),
    json_schema: "Path | dict[str, Any] | None" = None,
    against: Path | None = None,
    baseline: str | None = None,
    **given: Any,
) -> None:
    from edgeft.console import terminal_log
    from edgeft.errors import Interrupted, RunCutShort
    from edgeft.extras import extra_needed

    with extra_needed("gguf"):
        from edgeft.bench.backends import Setup
        from edgeft.bench.encoder import bench_encoder
        from edgeft.bench.examples import read_examples
        from edgeft.bench.file import BenchResult, BenchSettings, bench_file
        from edgeft.bench.latency import LatencyPlan
        from edgeft.runtime.encoder_folder import is_encoder

    place = _baseline_path(baseline)
    schema = _read_schema(json_schema) if isinstance(json_schema, Path) else json_schema
    plan = LatencyPlan(**{key: given.pop(key) for key in TIMING if key in given})
    setup = Setup(**{key: given.pop(key) for key in PLACE if key in given})
    settings = BenchSettings(metrics=metrics, json_schema=schema, minutes=minutes, latency=plan, **given)
    how: dict[str, Any] = {"silence_s": timeout_s, "log": terminal_log()}
    if encoder := is_encoder(file):
        if data is None or speed_only or against:
            raise click.UsageError("a classifier is measured on --data, labels and speed together, against nothing")
    else:
        how |= {"scored": not speed_only, "against": against, "with_roofline": with_roofline}
    try:
        examples = read_examples(data) if data else []
        result = (bench_encoder if encoder else bench_file)(file, examples, settings, setup, **how)
    except (RunCutShort, Interrupted) as error:
        partial: BenchResult = error.partial
        _write(partial.to_json(), out)
        if isinstance(error, RunCutShort):
            raise
        _show(file.name, partial.to_json(), as_json)
        click.echo(f"stopped; {f'{out} holds' if out else 'shown is'} what was measured until then", err=True)
        click.get_current_context().exit(INTERRUPTED)
    content = result.to_json()
    _write(content, out)
    _show(file.name, content, as_json)
    _save_baseline(place, content)


def _read_schema(path: Path) -> Any:
    from edgeft.errors import UsageError

    try:
        schema = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"--json-schema {path}: cannot be read ({error}); give a JSON file") from None
    if not isinstance(schema, dict):
        raise UsageError(f"--json-schema {path}: a JSON schema is an object here, such as {{}}")
    return schema


def _baseline_path(name: str | None) -> Path | None:
    """Where the baseline goes, refused before anything is measured when it is no name."""
    from edgeft.bench.baseline import baseline_path

    return None if name is None else baseline_path(name)


def _save_baseline(path: Path | None, content: dict[str, Any]) -> None:
    from edgeft.bench.baseline import save_baseline

    if path is not None:
        save_baseline(path, content["metrics"], content["latency"]["host"], file=content["file"])
        click.echo(f"baseline saved: {path}", err=True)


def _write(content: dict[str, Any], out: Path | None) -> None:
    from edgeft.artifact import write_atomic

    if out is not None:
        write_atomic(out, json.dumps(content, indent=1) + "\n")


def _show(name: str, content: dict[str, Any], as_json: bool) -> None:
    from edgeft.report.build import build_report
    from edgeft.report.terminal import to_terminal

    if as_json:
        print_json(content)
    else:
        show_verdict(to_terminal(build_report({"recipe": {"name": name}, "bench": content})))
