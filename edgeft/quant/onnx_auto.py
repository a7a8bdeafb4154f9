"""What MatMulNBits' grids learn from calibration tokens: error feedback, and a mix of grids for a number of bytes.

Shapes: R rows (outputs) and C columns (inputs) of a matrix, T tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from edgeft.console import Log
from edgeft.quant.collect import folder_calibration
from edgeft.quant.grids.onnx import Group, MatMulNBits, dequantize, matrix_bytes
from edgeft.quant.linear_inputs import linear_inputs
from edgeft.quant.moments import Matrix, collect_moments
from edgeft.quant.onnx_rounding import FeedbackRounder, round_by_search
from edgeft.quant.planner import Option, plan_mix
from edgeft.training.models import load_model


def calibrated_rounder(
    model: Any,
    sequences: Sequence[Sequence[int]],
    sources: Mapping[str, Sequence[str]],
    method: Literal["gptq", "feedback"],
    *,
    log: Log,
) -> FeedbackRounder:
    """A rounder with the Hessians of the causal `model` on `sequences` of token ids.

    `gptq` takes those of the inputs, `feedback` weighs each token by how much it matters. `sources` gives for each
    GGUF name the tensors of the checkpoint. Raises ModelError when the model overflows.
    """
    if method == "gptq":
        return FeedbackRounder(input_hessians(model, sequences, sources, log=log))
    matrices = collect_moments(model, sequences, sources, log=log)
    return FeedbackRounder({name: matrix.hessian for name, matrix in matrices.items()})


def rounder_of_folder(
    model_dir: Path,
    sources: Mapping[str, Sequence[str]],
    method: Literal["gptq", "feedback"],
    *,
    examples: Path | None,
    text: Path | None,
    max_tokens: int,
    chunk_size: int,
    seed: int = 0,
    log: Log,
) -> FeedbackRounder:
    """`calibrated_rounder` of the model folder `model_dir`, on chat JSONL and general text as `read_calibration`
    mixes them. Raises DataError for files that cannot be used, ModelError for a model that cannot be loaded."""
    calibration = folder_calibration(
        model_dir, examples=examples, text=text, max_tokens=max_tokens, chunk_size=chunk_size, seed=seed
    )
    return calibrated_rounder(load_model(model_dir), calibration.sequences, sources, method, log=log)


@torch.inference_mode()
def input_hessians(
    model: Any, sequences: Sequence[Sequence[int]], sources: Mapping[str, Sequence[str]], *, log: Log
) -> dict[str, np.ndarray]:
    """Mean x x' (C, C) float32 of the inputs of every matrix of the layers, scaled to a mean diagonal of one."""
    sums: dict[str, torch.Tensor] = {}

    def seen(name: str, inputs: torch.Tensor, expert: tuple[int, int] | None = None) -> None:
        rows = inputs.reshape(-1, inputs.shape[-1]).float()
        sums[name] = sums[name] + rows.T @ rows if name in sums else rows.T @ rows

    with linear_inputs(model.eval(), sources, seen), log.progress("inputs", len(sequences), "sequences") as progress:
        for done, sequence in enumerate(sequences, 1):
            model(torch.tensor([sequence], device=model.device), use_cache=False)
            progress.update(done)
    scaled = {name: total / total.diagonal().mean().clamp(min=1e-30) for name, total in sums.items()}
    return {name: total.cpu().numpy() for name, total in scaled.items()}


def plan_grids(
    model: Any,
    sequences: Sequence[Sequence[int]],
    sources: Mapping[str, Sequence[str]],
    groups: Mapping[str, Group],
    *,
    target_bytes: int,
    log: Log,
) -> tuple[dict[str, MatMulNBits], FeedbackRounder]:
    """The grid of each tensor of `groups` for the least divergence within `target_bytes` of packed matrices, and the
    rounder for them.

    Divergences are the second-order estimates of `edgeft.quant.moments`, of weights rounded by search. Groups with
    a matrix that could not be measured get their first candidate. Raises UsageError when no mix is small enough.
    """
    matrices = collect_moments(model, sequences, sources, log=log)
    options: dict[str, list[Option]] = {}
    with log.progress("grids", len(groups), "groups of matrices") as progress:
        for done, (name, group) in enumerate(groups.items(), 1):
            if all(tensor in matrices for tensor in group.tensors):
                options[name] = [_option(group, grid, matrices) for grid in group.candidates]
            else:
                options[name] = [Option(group.candidates[0].name, _group_bytes(group, group.candidates[0]), 0.0)]
            progress.update(done)
    plan = plan_mix(options, target_bytes=target_bytes)
    by_name = {grid.name: grid for group in groups.values() for grid in group.candidates}
    chosen = {name: by_name[plan.tensors[name].kind] for name in groups}
    log.say(_table(chosen, plan.tensors, plan.n_bytes))
    grids = {tensor: chosen[name] for name, group in groups.items() for tensor in group.tensors}
    return grids, FeedbackRounder({name: matrix.hessian for name, matrix in matrices.items()})


def _group_bytes(group: Group, grid: MatMulNBits) -> int:
    return sum(matrix_bytes(shape, grid) for shape in group.tensors.values())


def _option(group: Group, grid: MatMulNBits, matrices: Mapping[str, Matrix]) -> Option:
    divergence = 0.0
    for name, shape in group.tensors.items():
        weight = matrices[name].weight
        rounded = dequantize(round_by_search(name, weight, grid), grid, shape[1])
        divergence += matrices[name].divergence(rounded - weight)
    return Option(grid.name, _group_bytes(group, grid), divergence)


def _table(chosen: Mapping[str, MatMulNBits], options: Mapping[str, Option], n_bytes: int) -> str:
    """One line for each grid: nodes and megabytes."""
    lines = [f"{'grid':<20}{'nodes':>8}{'MB':>10}"]
    for kind in sorted({grid.name for grid in chosen.values()}):
        of_kind = [options[name] for name, grid in chosen.items() if grid.name == kind]
        lines.append(f"{kind:<20}{len(of_kind):>8}{sum(option.n_bytes for option in of_kind) / 1e6:>10.3f}")
    return "\n".join([*lines, f"{'all':<20}{len(chosen):>8}{n_bytes / 1e6:>10.3f}"])
