"""Several workers on one run: each takes a share of every global batch, gradients are summed, one rank writes.

What a step's batch is does not depend on the number of workers, only who computes which of its examples. The
loss is a sum; its one divisor, the count of the whole global batch, is summed over the workers before anyone
divides. So n workers take the steps one worker takes, up to the order of additions.

Launch: `torchrun --nproc_per_node N`, which sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. NCCL
where there are GPUs, gloo elsewhere. All workers read the checkpoint of rank 0: one machine, or a shared folder.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from edgeft.errors import TrainingError

# The others wait while rank 0 answers the validation set.
TIMEOUT = timedelta(hours=4)
BUCKET_BYTES = 32 << 20

Value = TypeVar("Value")


@dataclass(frozen=True)
class Workers:
    """This process among `size` workers. With one worker every method is free of communication."""

    rank: int = 0
    size: int = 1

    @property
    def writes(self) -> bool:
        """Whether this worker writes files and talks."""
        return self.rank == 0

    def share(self, index: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The examples of the global batch `index` (B,) this worker computes, in their order there.

        `lengths` are the tokens of all examples of the set. Longest first, each goes to the worker with the
        fewest tokens so far (Graham 1969, LPT), ties to the lowest rank: the same shares in every process.
        """
        if self.size == 1:
            return index
        loads = [0] * self.size
        mine = []
        for place in np.argsort(-lengths[index], kind="stable"):
            worker = loads.index(min(loads))
            loads[worker] += int(lengths[index[place]])
            if worker == self.rank:
                mine.append(place)
        return index[np.sort(np.array(mine, dtype=np.int64))]

    def sum_numbers(self, *numbers: float) -> list[float]:
        """The numbers, each summed over the workers, in float64."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64, device=_device())
        dist.all_reduce(total)
        return [float(number) for number in total]

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum the gradients over the workers; a parameter without one anywhere keeps none."""
        if self.size == 1:
            return
        parameters = list(parameters)
        touched = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=_device())
        dist.all_reduce(touched)
        gradients = []
        for parameter, count in zip(parameters, touched.tolist(), strict=True):
            if count:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, value: Value) -> list[Value]:
        """The values of all workers, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """Rank 0's value, in every worker."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def begin(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Start from rank 0's weights, with random numbers (dropout) of the worker's own."""
        if self.size == 1:
            return
        for parameter in parameters:
            dist.broadcast(parameter.data, src=0)
        torch.manual_seed(torch.initial_seed() + self.rank)

    def wait(self) -> None:
        """Wait until every worker is here."""
        if self.size > 1:
            dist.barrier()


ALONE = Workers()


@contextmanager
def distributed() -> Iterator[Workers]:
    """The workers torchrun started, this process among them; `ALONE` outside of torchrun.

    Raises TrainingError when the environment is incomplete, there are fewer GPUs than workers on this machine,
    or the workers do not find each other.
    """
    size = _number("WORLD_SIZE", 1)
    if size == 1:
        yield ALONE
        return
    rank, local = _number("RANK"), _number("LOCAL_RANK", 0)
    on_gpu = torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise TrainingError(
            f"worker {local} of this machine finds {torch.cuda.device_count()} GPUs; "
            "start torchrun with --nproc_per_node of at most that"
        )
    if on_gpu:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=size, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"worker {rank} of {size} cannot join the others ({error}); start all of them with torchrun"
        ) from error
    yield Workers(rank, size)
    dist.destroy_process_group()  # not after an error: the others may wait in an operation; torchrun ends them


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise TrainingError(
            f"the environment variable {name} is {text!r}, not a number; start the workers with torchrun"
        ) from None


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Gradients of one type together, up to `BUCKET_BYTES`: few messages, little memory beside."""
    bucket: list[torch.Tensor] = []
    held = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if bucket and (held + size > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += size
    if bucket:
        yield bucket
