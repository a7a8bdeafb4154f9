"""The smallest model a loop can train: the next token from the one before, with dropout, in milliseconds."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgeft.console import silent_log
from edgeft.training.batches import Batch, TokenSet, plan_epochs
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig, LoopResult, train_loop

VOCABULARY = 61


class Bigram(torch.nn.Module):
    def __init__(self, dropout: float = 0.1, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(VOCABULARY, width)
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(width, VOCABULARY)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.embedding(ids)))


def bigram_loss_sum(model: Any, batch: Batch) -> torch.Tensor:
    return F.cross_entropy(model(batch.input_ids[0, batch.loss_positions]), batch.labels, reduction="sum")


def random_tokens(n: int = 60, seed: int = 3) -> TokenSet:
    """Examples of very different lengths and counts of learned tokens."""
    rng = np.random.default_rng(seed)
    return TokenSet.build(
        [
            (rng.integers(0, VOCABULARY, k).tolist(), (rng.random(k) < rng.random()).tolist())
            for k in rng.integers(2, 50, n)
        ]
    )


def make_config(**changes: Any) -> LoopConfig:
    base: dict[str, Any] = {
        "learning_rate": 1e-2, "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_grad_norm": 1.0,
        "micro_batch_tokens": 128, "save": SaveRule(seconds=None, steps=3), "eval_steps": 4,
    }  # fmt: skip
    return LoopConfig(**(base | changes))


def train_bigram(
    out: Path,
    *,
    model: torch.nn.Module | None = None,
    tokens: TokenSet | None = None,
    optimizer: Any = None,
    loss_sum: Any = bigram_loss_sum,
    config: LoopConfig | None = None,
    batch_tokens: int = 128,
    epochs: float = 2,
    seed: int = 5,
    log: Any = None,
    **kwargs: Any,
) -> tuple[dict[str, torch.Tensor], LoopResult]:
    """The weights after training (or after resuming) in `out`, and the loop's result."""
    out.mkdir(parents=True, exist_ok=True)
    model = model if model is not None else Bigram()
    tokens = tokens if tokens is not None else random_tokens()
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan = plan_epochs(tokens.lengths, batch_tokens=batch_tokens, epochs=epochs, seed=seed)
    result = train_loop(
        model, optimizer, tokens, plan, loss_sum, config or make_config(), out=out, log=log or silent_log(), **kwargs
    )
    return {name: p.detach().clone() for name, p in model.named_parameters()}, result
