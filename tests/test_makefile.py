"""What `make setup` would do, by `make --dry-run` in a copy: nothing is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

COMPILED_AGAIN = "--force-reinstall --no-deps"
LLAMA = "llama-cpp-python=="
NATIVE, PORTABLE = ".venv/installed.stamp", ".venv/portable.stamp"


@pytest.fixture
def checkout(repo_root: Path, tmp_path: Path) -> Path:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(repo_root / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    return tmp_path


def setup(checkout: Path, *variables: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("LLAMA_CPU", "MAKEFLAGS")}
    done = subprocess.run(
        ["make", "--dry-run", "setup", *variables], cwd=checkout, capture_output=True, text=True, env=environment
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("installed", "variables", "compiled_again", "stamp"),
    [
        (None, (), False, NATIVE),
        (None, ("LLAMA_CPU=portable",), True, PORTABLE),
        (NATIVE, (), False, None),
        (NATIVE, ("LLAMA_CPU=portable",), True, PORTABLE),
        (PORTABLE, (), False, None),  # what is installed stays
        (PORTABLE, ("LLAMA_CPU=native",), True, NATIVE),
    ],
)
def test_llama_cpp_is_compiled_for_what_is_asked(
    checkout: Path, installed: str | None, variables: tuple[str, ...], compiled_again: bool, stamp: str | None
) -> None:
    if installed:
        (checkout / installed).touch()
    code, said = setup(checkout, *variables)
    assert code == 0, said
    assert (COMPILED_AGAIN in said and LLAMA in said) == compiled_again
    assert (f"touch {stamp}" in said) if stamp else ("pip install" not in said)


def test_a_word_that_means_nothing_is_refused(checkout: Path) -> None:
    code, said = setup(checkout, "LLAMA_CPU=old")
    assert code == 2
    assert "LLAMA_CPU is native or portable, not old" in said


def test_the_portable_build_keeps_the_callers_arguments(checkout: Path) -> None:
    environment = os.environ | {"CMAKE_ARGS": "-DMINE=1"}
    command = ["make", "show", "LLAMA_CPU=portable", "--eval=show: ; @echo args=$$CMAKE_ARGS"]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    assert "-DGGML_CPU_ALL_VARIANTS=ON" in done.stdout, done.stderr
    assert "-DMINE=1" in done.stdout
