"""`tests/isa.sh`: what it names exists, and the switches it sets are heard by the libraries."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def script(repo_root: Path) -> str:
    return (repo_root / "tests" / "isa.sh").read_text(encoding="utf-8")


def test_what_it_runs_exists(repo_root: Path, script: str) -> None:
    named = set(re.findall(r"(?<![\w/])tests/[\w/]+(?:\.py)?(?=[\s)])", script.split("work=$(mktemp")[0]))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (repo_root / name).exists()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize("words", [["mmx"], ["quick", "mmx"]])
def test_a_level_that_is_none_is_refused(repo_root: Path, words: list[str]) -> None:
    done = subprocess.run(
        ["bash", "tests/isa.sh", *words],
        cwd=repo_root,
        capture_output=True,
        text=True,
        env={"BIN": "/bin", "PATH": "/bin:/usr/bin"},
    )
    assert done.returncode == 2
    assert "no level mmx; there are sse and avx2" in done.stderr


@pytest.mark.parametrize(("level", "aten", "onednn"), [("sse", "default", "SSE41"), ("avx2", "avx2", "AVX2")])
def test_the_switches_are_those_the_libraries_know(script: str, level: str, aten: str, onednn: str) -> None:
    """As `edgeft.machine` has them from the libraries' documents."""
    from edgeft.machine.instruction_sets import ATEN, ONEDNN

    (line,) = re.findall(rf"^    {level}\) echo (.*?) \\$", script, re.MULTILINE)
    assert f"ATEN_CPU_CAPABILITY={aten} ONEDNN_MAX_CPU_ISA={onednn}" in line
    assert aten in ATEN
    assert onednn.lower() in ONEDNN
