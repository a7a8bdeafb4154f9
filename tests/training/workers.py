"""Workers of a distributed run, to be started by torchrun: each writes what its trainings came to.

torchrun --nproc_per_node 2 -m tests.training.workers OUT
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgeft.training.batches import Batch
from edgeft.training.distributed import Workers, distributed
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LossSum
from tests.training.bigram import Bigram, bigram_loss_sum, make_config, random_tokens, train_bigram

STEPS = 3


@dataclass(frozen=True)
class PerRank(Workers):
    """The mutant: each worker divides by its own count, and the means are averaged, as plain DDP does."""

    def sum_numbers(self, *numbers: float) -> list[float]:
        return [number * self.size for number in numbers]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


def train(
    out: Path, workers: Workers, *, dropout: float = 0.0, micro: int = 100, loss_sum: LossSum = bigram_loss_sum
) -> dict[str, Any]:
    """Three steps of plain SGD, which moves by the gradient itself; ranks begin with weights of their own."""
    model = Bigram(dropout=dropout, seed=workers.rank)
    config = make_config(
        learning_rate=0.5, micro_batch_tokens=micro, save=SaveRule(seconds=None, steps=2), eval_steps=1
    )
    weights, result = train_bigram(
        out,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.5),
        batch_tokens=400,
        epochs=0.75,
        config=config,
        validation=random_tokens(9, 1),
        loss_sum=loss_sum,
        workers=workers,
    )
    return {"weights": weights, "eval_loss": result.eval_loss, "steps": result.steps, "tokens": result.tokens}


def killed_in_the_last_step() -> LossSum:
    calls = 0

    def loss_sum(model: Any, batch: Batch) -> torch.Tensor:
        nonlocal calls
        calls += model.training
        if calls == STEPS:
            raise Killed
        return bigram_loss_sum(model, batch)

    return loss_sum


def main() -> None:
    out = Path(sys.argv[1])
    with distributed() as workers:
        found = {
            "plain": train(out / "plain", workers),
            "mutant": train(out / f"mutant-{workers.rank}", PerRank(workers.rank, workers.size)),
            "dropout": train(out / "dropout", workers, dropout=0.5, micro=400),
        }
        try:
            train(out / "resumed", workers, dropout=0.5, micro=400, loss_sum=killed_in_the_last_step())
        except Killed:
            torch.manual_seed(99)
            found["resumed"] = train(out / "resumed", workers, dropout=0.5, micro=400)
        torch.save(found, out / f"rank-{workers.rank}.pt")


if __name__ == "__main__":
    main()
