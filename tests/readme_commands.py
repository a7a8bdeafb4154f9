"""Run the shell commands of README.md, every one and in order, in a copy of this checkout.

    python tests/readme_commands.py [--skip REGEX ...] [--busy N] [--venv FOLDER] [--json FILE]

`--busy N` starts N processes that do nothing but turn: under load a command may be slow, not wrong. Lines that match a
`--skip` are not run and are listed. `--venv` (default: this checkout's) stands in for an installation of its own; skip
`^make`, `pip` and `venv` with it. What README calls `model`, old.gguf and the like is set up from the run it has
just described (`PROPS`).

A command is right when it ends with 0, or with 3 where it judges (a budget of the template's eight examples may be
missed). A traceback is wrong whatever the code. Exit 1 when a command was wrong.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 3600
JUDGES = re.compile(r"edgeft (run|gate|reproduce|parity|compare|report)\b")
TALKS, TALK = re.compile(r"^edgeft chat "), "hello\n"  # at a terminal; here standard input is one question
BUSY = "while True: pass"
# A name that README takes for granted -> how to make it, run before the first command that says it.
PROPS = {
    "model": "ln -s runs/mytask/merge model",
    "train.jsonl": "cp mytask/train.jsonl .",
    "test.jsonl": "cp mytask/test.jsonl .",
    "old.gguf": "cp files/model-F16.gguf old.gguf",
    "new.gguf": "cp files/model-Q4_K_M.gguf new.gguf",
    "old.edgeft": "cp mytask.edgeft old.edgeft",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip", action="append", default=[], metavar="REGEX")
    parser.add_argument("--busy", type=int, default=0, metavar="N")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--json", type=Path, dest="out", metavar="FILE")
    arguments = parser.parse_args()
    load = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(arguments.busy)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            results = run_all(commands(), checkout(Path(folder), arguments.venv), arguments.skip)
    finally:
        for process in load:
            process.kill()
    if arguments.out:
        arguments.out.write_text(json.dumps({"busy": arguments.busy, "commands": results}, indent=2) + "\n", "utf-8")
    wrong = [row for row in results if row["verdict"] == "WRONG"]
    skipped = sum(row["verdict"] == "skipped" for row in results)
    print(f"{len(results) - skipped} commands run, {len(wrong)} wrong, {skipped} skipped", flush=True)
    sys.exit(1 if wrong else 0)


def commands() -> list[str]:
    """The lines of README's bash blocks that do something."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def checkout(folder: Path, venv: Path) -> Path:
    """A copy of the files git knows, as they are here, with `venv` as its .venv."""
    copy = folder / "edgeft"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    (copy / ".venv").symlink_to(venv.resolve(), target_is_directory=True)
    return copy


def run_all(lines: Sequence[str], folder: Path, skip: Sequence[str]) -> list[dict[str, Any]]:
    """Run each line in `folder`, and print and return what came of it."""
    results, props = [], dict(PROPS)
    for line in lines:
        if any(re.search(pattern, line) for pattern in skip):
            results.append({"command": line, "verdict": "skipped"})
        else:
            for name in [name for name in props if re.search(rf"(^|\s){re.escape(name)}\b", line)]:
                _shell(props.pop(name), folder)
            results.append(run_one(line, folder))
        print("{verdict:8} {code:>4} {seconds:>8}  {command}".format(**{"code": "", "seconds": ""} | results[-1]))
        if results[-1]["verdict"] == "WRONG":
            print(results[-1]["said"])
        sys.stdout.flush()
    return results


def run_one(line: str, folder: Path) -> dict[str, Any]:
    """Run `line`: its exit code, seconds, verdict, and the end of what it said if it was wrong."""
    began = time.monotonic()
    code, said = _shell(line, folder)
    right = (code == 0 or (code == 3 and JUDGES.search(line))) and "Traceback (most recent call last)" not in said
    row: dict[str, Any] = {"command": line, "code": code, "seconds": round(time.monotonic() - began, 1)}
    return row | ({"verdict": "right"} if right else {"verdict": "WRONG", "said": said[-3000:]})


def _shell(line: str, folder: Path) -> tuple[int, str]:
    environment = os.environ | {
        "PATH": os.pathsep.join([str(folder / ".venv/bin"), os.environ["PATH"]]),
        "PYTHONPATH": str(folder),  # the copy's edgeft, not the one that the environment points at
    }
    try:
        done = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, input=TALK if TALKS.search(line) else "",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as stopped:
        return 124, f"no end after {TIMEOUT_S} s\n{stopped.output or ''}"
    return done.returncode, done.stdout


if __name__ == "__main__":
    main()
