"""Running a recipe's own data script."""

import os
import subprocess
import sys
from pathlib import Path

from edgeft.console import Log
from edgeft.errors import DataError
from edgeft.recipe import Recipe
from edgeft.sections import Prepare


def run_prepare(recipe: Recipe, prepare: Prepare, out: Path, log: Log) -> None:
    """Run `prepare.script --out out` in a process of its own, its talk kept for the error.

    Raises DataError when the script is missing or fails; the message ends with the script's last lines.
    """
    script = recipe.resolve(prepare.script)
    if not script.is_file():
        raise DataError(f"data.prepare.script: no file {script}")
    out.mkdir(parents=True, exist_ok=True)
    log.say(f"preparing data with {script.name}")
    done = subprocess.run(
        [sys.executable, str(script), "--out", str(out)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        check=False,
    )
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise DataError(f"{script} failed with exit code {done.returncode}:\n{said}")
    for line in done.stderr.strip().splitlines():
        log.say(f"  {line}")
