"""What a fresh process loads before it is asked for anything.

Time is measured elsewhere; here it is what costs it that is counted: third-party modules (an allow-list) and
the modules of the standard library that come on top of click's.
"""

import subprocess
import sys

import pytest

MAY_LOAD = {
    "from edgeft.cli import main; main(['--help'])": {"click"},
    "from edgeft.cli import main; main(['--version'])": {"click"},
    "import edgeft.artifact, edgeft.store, edgeft.console, edgeft.errors": set(),
    "import edgeft.runtime": set(),
    "import edgeft.runtime.bundle": set(),
    "import edgeft.bundle.pack, edgeft.bundle.diff, edgeft.bundle.layouts, edgeft.bundle.signing": set(),
    "import edgeft.bench, edgeft.bench.budgets": set(),
    "import edgeft.bench.file, edgeft.bench.gate, edgeft.bench.accuracy": {"numpy"},
    "import edgeft.report.build, edgeft.report.gather, edgeft.report.terminal": set(),
    "import edgeft.recipe_reader": {"pydantic", "yaml"},
    "import edgeft.pipeline, edgeft.preflight": {"pydantic"},
}
# What the allowed packages bring along.
COMPANIONS = {
    "pydantic": {"pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"},
    "yaml": {"_yaml", "cython_runtime"},
}
GENERATED = ("_sysconfigdata", "_cython")  # names that carry a platform or a version
MORE_THAN_CLICK = 20


def loaded_by(code: str) -> set[str]:
    """Modules a fresh interpreter has loaded after `code`."""
    listing = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.fixture(scope="module")
def at_rest() -> set[str]:
    """Modules of an interpreter that does nothing (site packages with import hooks included)."""
    return loaded_by("pass")


@pytest.mark.parametrize("code", MAY_LOAD)
def test_only_allowed_packages_are_loaded(code: str, at_rest: set[str]) -> None:
    allowed = MAY_LOAD[code].union(*(COMPANIONS.get(name, set()) for name in MAY_LOAD[code]))
    top = {name.split(".")[0] for name in loaded_by(code) - at_rest if not name.startswith(GENERATED)}
    assert top - sys.stdlib_module_names - {"edgeft"} - allowed == set()


def test_help_costs_little_more_than_click(at_rest: set[str]) -> None:
    of_click = loaded_by("import click")
    extra = loaded_by("from edgeft.cli import main; main(['--help'])") - of_click
    assert len(extra) <= MORE_THAN_CLICK, sorted(extra)
