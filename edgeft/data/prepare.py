"""Running a recipe's own data script."""

import sys
from pathlib import Path

from edgeft.children import how_it_ended, run_to_end
from edgeft.console import Log
from edgeft.errors import DataError, RuntimeFault
from edgeft.recipe import Recipe
from edgeft.sections import Prepare

SILENCE_S = 3600.0
"""A script that says nothing for so long is taken to hang."""
LAST_LINES = 12


def run_prepare(recipe: Recipe, prepare: Prepare, out: Path, log: Log) -> None:
    """Run `prepare.script --out out` in a process of its own; what it writes to stderr is said as it comes.

    Raises DataError when the script is missing, fails, or says nothing for SILENCE_S seconds; the message ends with
    the script's last lines.
    """
    script = recipe.resolve(prepare.script)
    if not script.is_file():
        raise DataError(f"data.prepare.script: no file {script}")
    out.mkdir(parents=True, exist_ok=True)
    log.say(f"preparing data with {script.name}")
    try:
        done = run_to_end(
            [sys.executable, str(script), "--out", str(out)],
            str(script),
            silence_s=SILENCE_S,
            environment={"PYTHONHASHSEED": "0"},
            heard=lambda line: log.say(f"  {line}"),
        )
    except RuntimeFault as error:
        raise DataError(f"{error}\nA script that works for long has to write a line now and then.") from None
    if done.code:
        said = "\n".join(done.last_lines(LAST_LINES))
        raise DataError(f"{script} {how_it_ended(done.code)}:\n{said}")
