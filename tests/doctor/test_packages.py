"""Python, compiler and extras: tables of what is there and what is said."""

import pytest
from packaging.specifiers import SpecifierSet

from edgeft.doctor.packages import check_compiler, check_extras, check_python, satisfies

REQUIRED = [
    "click>=8.1",
    "rich>=13",
    'torch>=2.9; extra == "train"',
    'numpy>=1.26; extra == "train"',
    'llguidance<2,>=1.9; extra == "constrain"',
    'lm-eval>=0.4.9; extra == "lm-eval"',
    'edgeft[constrain,train]; extra == "all"',
]
CORE = {"click": "8.5.1", "rich": "15.0.0"}
WHOLE = CORE | {"torch": "2.13.0+cpu", "numpy": "2.4.6", "llguidance": "1.9.1", "lm-eval": "0.4.13"}


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [
        ((3, 10, 14), "broken", "install Python 3.11 or newer"),
        ((3, 11, 0), "ok", "Python 3.11.0"),
        ((3, 13, 9), "ok", "Python 3.13.9"),
        ((3, 14, 0), "note", "newer than any edgeft is tested on (3.13)"),
    ],
)
def test_python(version: tuple[int, int, int], state: str, said: str) -> None:
    found = check_python(version, "/bin/python")
    assert found.state == state
    assert said in f"{found.text} {found.advice}"


@pytest.mark.parametrize(
    ("programs", "environment", "needed", "state", "said"),
    [
        ({"cc", "c++", "make"}, {}, True, "ok", "/usr/bin/cc, /usr/bin/c++, make"),
        ({"clang", "clang++"}, {}, True, "ok", "/usr/bin/clang, /usr/bin/clang++, make comes with pip"),
        ({"cc", "c++", "my-c++", "ninja"}, {"CXX": "my-c++"}, True, "ok", "/usr/bin/my-c++, ninja"),
        ({"cc", "make"}, {}, True, "note", "no C++ compiler; llama.cpp cannot be compiled -> install one"),
        (set(), {}, False, "note", "no C compiler and no C++ compiler; only needed to install llama.cpp again"),
    ],
)
def test_compiler(programs: set[str], environment: dict[str, str], needed: bool, state: str, said: str) -> None:
    found = check_compiler(lambda name: f"/usr/bin/{name}" if name in programs else None, environment, needed)
    assert found.state == state
    assert said in f"{found.text} -> {found.advice}"


@pytest.mark.parametrize(
    ("installed", "extra", "state", "said"),
    [
        (WHOLE, "packages", "ok", "click 8.5.1, rich 15.0.0"),
        (WHOLE, "train", "ok", "torch 2.13.0+cpu, numpy 2.4.6"),
        (WHOLE, "lm-eval", "ok", "lm-eval 0.4.13"),
        (CORE | {"numpy": "2.4.6"}, "train", "note", "not installed (no torch) -> pip install 'edgeft[train]'"),
        (CORE | {"torch": "2.13.0"}, "train", "note", "not complete: numpy missing -> pip install 'edgeft[train]'"),
        (WHOLE | {"torch": "2.8.1"}, "train", "broken", "torch 2.8.1 (needs >=2.9)"),
        (WHOLE | {"llguidance": "2.0.0"}, "constrain", "broken", "llguidance 2.0.0 (needs <2,>=1.9)"),
        ({"click": "8.5.1"}, "packages", "broken", "missing: rich"),
    ],
)
def test_extras(installed: dict[str, str], extra: str, state: str, said: str) -> None:
    findings = {finding.topic: finding for finding in check_extras(REQUIRED, installed.get)}
    assert list(findings) == ["packages", "train", "constrain", "lm-eval"]
    found = findings[extra]
    assert found.state == state
    assert said in f"{found.text} -> {found.advice}"


def test_a_checkout_that_is_not_installed_has_no_extras() -> None:
    assert check_extras([], WHOLE.get) == []


@pytest.mark.parametrize("version", ["1.8.9", "1.9", "1.9.0", "1.10.2", "2", "2.0.0", "2.0.0+cpu", "10.1"])
@pytest.mark.parametrize("bounds", [">=1.9,<2", "<2,>=1.9", ">1.9", "<=2", ">=2.0.0", ">= 1.10", ""])
def test_bounds_are_those_of_packaging(version: str, bounds: str) -> None:
    assert satisfies(version, bounds) == SpecifierSet(bounds).contains(version)
