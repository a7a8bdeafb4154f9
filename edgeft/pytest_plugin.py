"""Budgets in a test suite: the fixture `edgeft` measures model files, the marker holds them to budgets.

    @pytest.mark.edgeft_budget("decode_tokens_per_s >= 50", "size_bytes <= 8MB")
    def test_model(edgeft):
        edgeft.bench("model.gguf")

Only pytest is imported until a test asks for the fixture: the plugin is loaded by every pytest run.
"""

from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgeft.bench.baseline import Baseline
    from edgeft.bench.gate import Results

MARKER = "edgeft_budget"
LENGTHS = (32, 64)
"""Prompt and answer of a file measured without data, in tokens."""
CACHE = pytest.StashKey[dict[Any, "Results"]]()


class Edgeft:
    """The fixture: it measures, and remembers what this test measured."""

    def __init__(self, cache: dict[Any, "Results"]) -> None:
        self.results: list[Results] = []
        self._cache = cache

    def bench(self, path: str | Path, data: str | Path | None = None, **settings: Any) -> dict[str, float]:
        """Measure a model file and return {metric: value}; the same call is measured once in a session.

        `data` is chat JSONL with the expected answers; without it only speed, memory and size are measured, on
        LENGTHS. `settings` are fields of `BenchSettings` (`metrics`, `limit`, `n_ctx`, `n_threads`, ...) and of
        `LatencyPlan` (`repetitions`, `n_gen`, ...). Raises EdgeftError as `bench_file` does.
        """
        file = Path(path).resolve()
        key = (file, data and Path(data).resolve(), tuple(sorted(settings.items())))
        if key not in self._cache:
            self._cache[key] = _measure(file, data, settings)
        self.results.append(self._cache[key])
        return {name: one.value for name, one in self._cache[key].measured.items()}


@pytest.fixture
def edgeft(request: pytest.FixtureRequest) -> Edgeft:
    """Measures model files: `edgeft.bench("model.gguf", data="test.jsonl")` gives {metric: value}."""
    return Edgeft(request.config.stash.setdefault(CACHE, {}))


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*budgets, baseline=None): what the test measures with the fixture `edgeft` must meet these budgets, "
        'e.g. "decode_tokens_per_s >= 50"; `baseline` names a stored one for ">= 0.95x baseline"',
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Judge what a marked test measured, once it has passed."""
    outcome = yield
    marks = list(pyfuncitem.iter_markers(MARKER))
    if marks:
        measuring = pyfuncitem.funcargs.get("edgeft")
        if not isinstance(measuring, Edgeft) or not measuring.results:
            pytest.fail(
                f"marked {MARKER}, but nothing was measured; call edgeft.bench(FILE) in the test", pytrace=False
            )
        for mark in marks:
            for result in measuring.results:
                _hold(result, mark)
    return outcome


def _hold(result: "Results", mark: pytest.Mark) -> None:
    from edgeft.bench.budgets import split_budget
    from edgeft.bench.gate import judge_results
    from edgeft.report.terminal import verdict_text

    budgets = dict(split_budget(text) for text in mark.args)
    verdict = judge_results(result, budgets, _baseline(mark.kwargs.get("baseline"), result))
    if not verdict.passed:
        pytest.fail(f"{result.file}\n{verdict_text(verdict.to_json())}", pytrace=False)


def _baseline(name: str | None, result: "Results") -> "Baseline | None":
    from edgeft.bench.baseline import Baseline, baseline_path

    return None if name is None else Baseline.read(baseline_path(name), result.host)


def _measure(file: Path, data: str | Path | None, settings: dict[str, Any]) -> "Results":
    from dataclasses import fields

    from edgeft.bench.examples import read_examples
    from edgeft.bench.file import BenchSettings, bench_file
    from edgeft.bench.gate import Results, collect
    from edgeft.bench.latency import LatencyPlan
    from edgeft.console import silent_log

    of_plan = {one.name for one in fields(LatencyPlan)}
    plan = {name: value for name, value in settings.items() if name in of_plan}
    rest = {name: value for name, value in settings.items() if name not in of_plan}
    if data is None:
        plan.setdefault("synthetic", (LENGTHS,))
    examples = read_examples(Path(data)) if data is not None else []
    wanted = BenchSettings(**rest, latency=LatencyPlan(**plan))
    content = bench_file(file, examples, wanted, with_roofline=False, log=silent_log()).to_json()
    return Results(content["file"], collect(content, None, None), content["latency"]["host"])
