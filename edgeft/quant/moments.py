"""What a model does with its weight matrices on calibration tokens: second moments of inputs and of gradients.

A change D of a matrix W changes the model's output distribution by, to second order,
KL = 1/2 E[(g' D x)^2] a token, with x the input of W at a token and g the gradient, with respect to W x, of the
log-probability of tokens drawn from the model itself (the Fisher information; Amari 1998). Taking the rows as
independent of each other and the size of g as the only thing that x and g share gives

    KL = 1/2 sum_i rows_i  d_i' columns d_i,   rows_i = E[g_i^2],   columns = E[|g|^2 x x'] / E[|g|^2]

for the rows d_i of D: `columns` is the Hessian of GPTQ (Frantar et al. 2023) with each token weighted by how much
it matters (as in GuidedQuant, Kim et al. 2025). An embedding is the same with the roles changed: x is one at the
token's row, and the gradient is by column. A matrix that is both, as tied embeddings are, has both terms.

Shapes: R rows (outputs) and C columns (inputs) of a matrix, T tokens.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from edgeft.console import Log
from edgeft.errors import ModelError

MATRICES = (nn.Linear, nn.Embedding, Conv1D)
"""Others with a weight of two dimensions, such as what chooses between experts, give more than a product."""


@dataclass(frozen=True)
class Term:
    """One way in which a matrix is used; see the module."""

    rows: np.ndarray
    """(R,) float32."""
    columns: np.ndarray
    """(C, C) float32, symmetric."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of the model with the ways it is used."""

    parameter: nn.Parameter
    """The model's own."""
    transposed: bool
    """Whether the model keeps it as (C, R)."""
    terms: tuple[Term, ...]

    @property
    def weight(self) -> np.ndarray:
        """(R, C) float32, rows as outputs."""
        weight = self.parameter.detach().T if self.transposed else self.parameter.detach()
        return np.ascontiguousarray(weight.float().cpu().numpy())

    def divergence(self, change: np.ndarray) -> float:
        """What adding `change` (R, C) to the weight does to the output, KL in nats a token, to second order."""
        return sum(
            0.5 * float(np.einsum("r,rc,rc->", term.rows, change @ term.columns, change, optimize=True))
            for term in self.terms
        )

    @property
    def hessian(self) -> np.ndarray:
        """(C, C) float32: the columns of all terms as a mean row sees them, scaled to a mean diagonal of one."""
        total = sum((term.rows.mean() * term.columns for term in self.terms), start=np.zeros(1, np.float32))
        mean = float(np.trace(total)) / len(total)
        return total / mean if mean > 0 else np.eye(len(total), dtype=np.float32)

    @property
    def importance(self) -> np.ndarray:
        """(C,) float32, the diagonal of the Hessian: for ggml's search of scales."""
        return np.ascontiguousarray(np.diag(self.hessian))


def collect_moments(
    model: Any, sequences: Sequence[Sequence[int]], sources: Mapping[str, Sequence[str]], *, seed: int = 0, log: Log
) -> dict[str, Matrix]:
    """Run `sequences` of token ids through the causal `model`, forwards and backwards; {name: Matrix}.

    `sources` gives for each name (of the GGUF file) the tensors of the checkpoint it is made from. Those made from
    one matrix of the model, with rows in any order, are measured; fused ones, stacks of experts and what chooses
    between these are not in the result. The same seed draws the same tokens. `model` is left without gradients.
    Memory: four bytes for every pair of inputs of every matrix, and the activations of one sequence. Raises
    ModelError when a gradient is not finite.
    """
    model.eval().requires_grad_(False)
    modules = _modules(model, sources)
    sums: dict[nn.Module, _Sums] = {}
    generator = torch.Generator().manual_seed(seed)
    n_tokens = sum(map(len, sequences))
    with _watched(modules, model.get_input_embeddings(), sums), log.progress("moments", n_tokens, "tokens") as progress:
        done = 0
        for sequence in sequences:
            logits = model(torch.tensor([sequence], device=model.device), use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0]
            nn.functional.cross_entropy(logits, drawn.to(logits.device), reduction="sum").backward()
            done += len(sequence)
            progress.update(done)
    return {name: _matrix(name, found, sums, n_tokens) for name, found in modules.items()}


@dataclass
class _Sums:
    """Over all tokens: squares of gradients (R,), weighted products of inputs (C, C), squared gradients."""

    rows: torch.Tensor
    columns: torch.Tensor
    total: torch.Tensor


def _modules(model: Any, sources: Mapping[str, Sequence[str]]) -> dict[str, list[nn.Module]]:
    """The modules that use each named matrix: one, or of tied embeddings two."""
    by_weight: dict[int, list[nn.Module]] = {}
    named: dict[str, nn.Module] = {}
    prefix = f"{model.base_model_prefix}."
    for name, module in model.named_modules():
        if isinstance(module, MATRICES):
            weight = module.weight
            by_weight.setdefault(id(weight), []).append(module)
            named[f"{name}.weight"] = named[f"{name.removeprefix(prefix)}.weight"] = module
    single = {name: names[0] for name, names in sources.items() if len(names) == 1 and names[0] in named}
    return {name: by_weight[id(named[source].weight)] for name, source in single.items()}


@contextlib.contextmanager
def _watched(
    modules: Mapping[str, list[nn.Module]], embeddings: nn.Module, sums: dict[nn.Module, _Sums]
) -> Iterator[None]:
    """While the block lasts, add to `sums` with every backward pass."""

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        if module is embeddings:
            output = output.requires_grad_()
        inputs = args[0].detach()
        output.register_hook(lambda gradient: _add(module, inputs, gradient, sums))
        return output

    watched = {module for found in modules.values() for module in found} | {embeddings}
    handles = [module.register_forward_hook(hook) for module in watched]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(module: Any, inputs: torch.Tensor, gradient: torch.Tensor, sums: dict[nn.Module, _Sums]) -> None:
    gradient = gradient.reshape(-1, gradient.shape[-1]).float()
    squares = gradient.square()
    sizes = squares.sum(dim=1)
    if isinstance(module, nn.Embedding):
        rows = torch.zeros(module.num_embeddings, device=sizes.device).index_add_(0, inputs.reshape(-1), sizes)
        columns = gradient.T @ gradient
    else:
        inputs = inputs.reshape(-1, inputs.shape[-1]).float()
        rows, columns = squares.sum(dim=0), (inputs * sizes[:, None]).T @ inputs
    if module not in sums:
        sums[module] = _Sums(torch.zeros_like(rows), torch.zeros_like(columns), torch.zeros_like(sizes[0]))
    sums[module].rows += rows
    sums[module].columns += columns
    sums[module].total += sizes.sum()


def _matrix(name: str, modules: list[nn.Module], sums: Mapping[nn.Module, _Sums], n_tokens: int) -> Matrix:
    terms = []
    for module in modules:
        found = sums[module]
        if not (found.rows.isfinite().all() and found.columns.isfinite().all()):
            raise ModelError(f"{name}: its gradients are not finite; the model overflows, or its weights are damaged")
        rows, columns = found.rows / n_tokens, found.columns / found.total.clamp(min=1e-30)
        terms.append(Term(rows.cpu().numpy(), columns.cpu().numpy()))
    return Matrix(modules[0].get_parameter("weight"), isinstance(modules[0], Conv1D), tuple(terms))
