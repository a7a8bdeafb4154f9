"""The pytest plugin, in suites of their own, on a real tiny file."""

import shutil
from pathlib import Path

import pytest

from edgeft.console import silent_log
from edgeft.export.gguf import write_gguf
from tests.tiny import make_tiny_llama

pytest_plugins = "pytester"

SUITE = """
import pytest

QUICK = dict(repetitions=1, warmup=0, n_ctx=128, n_threads=1, cold_loads=1, reloads=0, synthetic=((8, 4),))

@pytest.mark.edgeft_budget("size_bytes <= 100MB", "decode_tokens_per_s > 0")
def test_met(edgeft):
    assert edgeft.bench("m.gguf", **QUICK)["size_bytes"] > 1000

@pytest.mark.edgeft_budget("size_bytes <= 1KB")
def test_broken(edgeft):
    edgeft.bench("m.gguf", **QUICK)

@pytest.mark.edgeft_budget("size_bytes <= 1.05x baseline", baseline="main.json")
def test_no_baseline(edgeft):
    edgeft.bench("m.gguf", **QUICK)

@pytest.mark.edgeft_budget("size_bytes <= 1KB")
def test_nothing_measured(edgeft):
    pass

@pytest.mark.edgeft_budget("size_bytes <= 1KB")
def test_fails_by_itself(edgeft):
    assert edgeft.bench("m.gguf", **QUICK) == {}

def test_cached(edgeft, request):
    first, second = edgeft.bench("m.gguf", **QUICK), edgeft.bench("m.gguf", **QUICK)
    assert first == second
    assert len(request.config.stash[__import__("edgeft.pytest_plugin").pytest_plugin.CACHE]) == 1
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugin")
    make_tiny_llama(folder / "model")
    write_gguf(folder / "model", folder / "m.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    return folder / "m.gguf"


def run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    """The inner run loads the plugin by its module, whether or not the entry point is installed."""
    return pytester.runpytest_inprocess("-p", "no:edgeft", "-p", "edgeft.pytest_plugin", "--strict-markers", *words)


def test_budgets_on_what_a_test_measures(pytester: pytest.Pytester, file: Path) -> None:
    shutil.copy(file, pytester.path / "m.gguf")
    pytester.makepyfile(SUITE)
    result = run(pytester)
    result.assert_outcomes(passed=2, failed=4)
    result.stdout.fnmatch_lines_random(
        [
            "*FAIL: 1 of 1 budgets not met: size_bytes*",
            "*main.json: cannot be read*",
            "*marked edgeft_budget, but nothing was measured; call edgeft.bench(FILE) in the test*",
            "*assert * == {}*",
        ]
    )


def test_the_marker_and_the_fixture_are_explained(pytester: pytest.Pytester) -> None:
    run(pytester, "--markers").stdout.fnmatch_lines(["@pytest.mark.edgeft_budget(*budgets, baseline=None)*"])
    run(pytester, "--fixtures").stdout.fnmatch_lines(["edgeft*", "*Measures model files*"])


def test_loading_the_plugin_costs_nothing_but_pytest(pytester: pytest.Pytester) -> None:
    code = (
        "import pytest, sys; before = set(sys.modules); import edgeft.pytest_plugin; print(set(sys.modules) - before)"
    )
    loaded = pytester.run("python", "-c", code).stdout.str()
    assert "numpy" not in loaded
    assert "edgeft.bench" not in loaded
