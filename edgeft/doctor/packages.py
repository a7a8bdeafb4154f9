"""Python, the compiler, and the packages of each extra."""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

from edgeft.doctor.finding import Finding

OLDEST_PYTHON, NEWEST_TESTED = (3, 11), (3, 13)
REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^]]*\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"]([\w-]+)['\"])?")
NOT_SHOWN = {"all", ""}

Version = Callable[[str], str | None]
"""The installed version of a distribution; None where it is not installed."""
Which = Callable[[str], str | None]
"""The path of a program; None where there is none."""


def check_python(version: tuple[int, int, int], executable: str) -> Finding:
    """Whether edgeft runs, and is tested, on this Python."""
    text = f"Python {'.'.join(map(str, version))}"
    facts = {"version": list(version), "executable": executable}
    if version < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        return Finding("python", "broken", text, f"install Python {oldest} or newer; edgeft needs it", facts)
    if version[:2] > NEWEST_TESTED:
        newest = ".".join(map(str, NEWEST_TESTED))
        return Finding("python", "note", f"{text}, newer than any edgeft is tested on ({newest})", "", facts)
    return Finding("python", "ok", text, "", facts)


def check_compiler(which: Which, environment: Mapping[str, str], needed: bool) -> Finding:
    """What llama-cpp-python is compiled with; `needed`: it is still to be installed. (pip brings cmake and ninja.)"""
    wanted = {"C": ("cc", "gcc", "clang"), "C++": ("c++", "g++", "clang++")}
    named = {"C": environment.get("CC", ""), "C++": environment.get("CXX", "")}
    found = {
        language: next((path for name in (named[language], *names) if name and (path := which(name))), None)
        for language, names in wanted.items()
    }
    make = next((name for name in ("make", "ninja") if which(name)), None)
    facts = {"compilers": found, "make": make, "cmake": which("cmake")}
    missing = [f"no {language} compiler" for language, path in found.items() if path is None]
    if missing:
        advice = "install one (Debian and Ubuntu: apt install build-essential; macOS: xcode-select --install)"
        why = "llama.cpp cannot be compiled" if needed else "only needed to install llama.cpp again"
        return Finding("compiler", "note", f"{' and '.join(missing)}; {why}", advice if needed else "", facts)
    text = ", ".join(str(path) for path in found.values())
    return Finding("compiler", "ok", f"{text}, {make or 'make comes with pip'}", "", facts)


def check_extras(requirements: Sequence[str], version: Version) -> list[Finding]:
    """One finding for each extra of `requirements` (as a distribution's metadata has them), and one for the rest.

    An extra that is not installed, or only in part, is a choice; a version it cannot work with is broken.
    """
    extras: dict[str, list[tuple[str, str]]] = {}
    for line in requirements:
        if found := REQUIREMENT.match(line):
            name, bounds, extra = found.groups()
            extras.setdefault(extra or "", []).append((name, bounds.strip()))
    core = extras.pop("", [])
    findings = [_extra("packages", core, version, "pip install -c constraints.txt -e .")] if core else []
    for extra, packages in extras.items():
        if extra not in NOT_SHOWN:
            findings.append(_extra(extra, packages, version, f"pip install 'edgeft[{extra}]'"))
    return findings


def satisfies(version: str, bounds: str) -> bool:
    """Whether `version` is within `bounds` like `>=1.9,<2`. Only releases are compared, as numbers; what else a bound
    may say (`!=`, `~=`, `==`) is taken as met: pip has judged it."""
    for sign, limit in re.findall(r"(>=|<=|<|>)\s*([\d.]+)", bounds):
        order = _compare(version, limit)
        if not {">=": order >= 0, "<=": order <= 0, "<": order < 0, ">": order > 0}[sign]:
            return False
    return True


def _compare(one: str, other: str) -> int:
    """-1, 0 or 1; missing numbers are zeros, and what follows the release (`+cpu`, `rc1`) does not count."""
    release = re.compile(r"\d+(?:\.\d+)*")
    numbers = [list(map(int, found.group().split("."))) if (found := release.match(v)) else [] for v in (one, other)]
    for left, right in zip_longest(*numbers, fillvalue=0):
        if left != right:
            return -1 if left < right else 1
    return 0


def _extra(topic: str, packages: Sequence[tuple[str, str]], version: Version, install: str) -> Finding:
    found = {name: version(name) for name, _ in packages}
    facts = {"packages": found}
    old = [
        f"{name} {installed} (needs {bounds})"
        for name, bounds in packages
        if (installed := found[name]) is not None and not satisfies(installed, bounds)
    ]
    missing = [name for name, installed in found.items() if installed is None]
    if old:
        return Finding(topic, "broken", f"versions that do not fit: {', '.join(old)}", install, facts)
    if missing and topic == "packages":
        return Finding(topic, "broken", f"missing: {', '.join(missing)}", install, facts)
    if packages[0][0] in missing:  # the first is what the extra is for; the others are often there for another one
        return Finding(topic, "note", f"not installed (no {packages[0][0]})", install, facts)
    if missing:
        return Finding(topic, "note", f"not complete: {', '.join(missing)} missing", install, facts)
    return Finding(topic, "ok", ", ".join(f"{name} {installed}" for name, installed in found.items()), "", facts)
