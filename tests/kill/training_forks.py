"""Trainings of a tiny model in forks of one process that has torch loaded; see forking.py, whose talk this speaks.

A line from stdin is JSON: the folder, the seconds between checkpoints (null: every step) and the epochs. The fork
trains in the folder, from a checkpoint if there is one, and writes weights.pt.
"""

import json
import os
import sys
from pathlib import Path

import torch

from edgeft.interrupts import Interrupted, exit_code
from edgeft.training.keeping import SaveRule
from tests.training.bigram import Bigram, make_config, random_tokens, train_bigram


def main() -> None:
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            folder, save_seconds, epochs = json.loads(line)
            train(Path(folder), save_seconds, epochs)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def train(out: Path, save_seconds: float | None, epochs: float) -> None:
    """About 15 steps an epoch with dropout, evaluations, best states and checkpoints; then the end of the fork."""
    os.dup2(2, 1)
    code, save = 1, SaveRule(save_seconds, steps=None if save_seconds else 1)
    try:
        weights, result = train_bigram(
            out,
            model=Bigram(dropout=0.5, width=64),
            tokens=random_tokens(60, 1),
            validation=random_tokens(20, 2),
            epochs=epochs,
            config=make_config(learning_rate=0.02, metric_for_best_model="eval_loss", eval_steps=5, save=save),
        )
        found = {"weights": weights, "best": (result.best_step, result.best_value), "steps": result.steps}
        torch.save(found, out / "weights.pt")
        code = 0
    except Interrupted as error:
        code = exit_code(error)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
