"""A model that computes with the weights its export will have, while what they are rounded from trains.

Forward and backward passes see W' = round(W), bit for bit the tensor the runtime will read; the gradient with
respect to W' is taken for that of W (the straight-through estimator; Bengio et al. 2013, "Estimating or Propagating
Gradients Through Stochastic Neurons"; for weights on a grid Jacob et al. 2018). W is either a matrix that trains
itself, or W0 + s B A with frozen W0 and s = alpha / r (Hu et al. 2022), where dA = s B' dW and dB = s dW A'.

Shapes: a matrix (R, C) as the model holds it; A (r, C), B (R, r).
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from edgeft.errors import TrainingError
from edgeft.quant.grids.fake import Grid, round_rows


@dataclass(frozen=True)
class Rounding:
    """How the export rounds a parameter: to which grid, with what importance (columns of the file's tensor,), and
    whether the file's rows are the parameter's columns."""

    grid: Grid
    importance: np.ndarray | None = None
    transposed: bool = False


@dataclass(frozen=True)
class LowRank:
    """Adapters in the stead of whole matrices (names of peft's LoraConfig)."""

    r: int
    lora_alpha: float


class RoundedModel(nn.Module):
    """`model` with some of its parameters rounded; the parameters of this module are those that train.

    Without `lora` these are all of the model's: what the rounded ones are rounded from, and the others themselves.
    With it they are A and B of every rounded matrix but embeddings and head, which are rounded and stay.
    `roundings` are by the names of `model.named_parameters()`; a matrix that is both embedding and head has one.
    `model` becomes this one's own: look at it through `rounded` and `unround`. The rounding runs in `n_threads`
    threads (None: torch's number).
    """

    def __init__(
        self,
        model: Any,
        roundings: Mapping[str, Rounding],
        *,
        lora: LowRank | None = None,
        n_threads: int | None = None,
    ) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, for its parameters are not this module's
        self._roundings = dict(roundings)
        self._parameters_of = {name: model.get_parameter(name) for name in roundings}
        self._n_threads = n_threads or torch.get_num_threads()
        self._stale = set(roundings)
        self.masters = nn.ModuleDict()
        self.floats = nn.ParameterList()
        model.requires_grad_(lora is None)
        looked_up = {id(module.weight) for module in _ends(model)}
        for name, parameter in self._parameters_of.items():
            if lora is None:
                self._hold(name, _Whole(parameter))
            elif parameter.ndim == 2 and id(parameter) not in looked_up:
                self._hold(name, _Adapted(parameter, lora))
            else:
                self._hold(name, _Frozen(parameter))
        if lora is None:
            rounded = {id(parameter) for parameter in self._parameters_of.values()}
            self.floats.extend(p for p in model.parameters() if id(p) not in rounded)

    def rounded(self) -> Any:
        """The model with every weight as the export rounds it now; its gradients go to this module's parameters.

        After `changed` what trains is rounded again. Raises TrainingError when weights are not finite.
        """
        with torch.no_grad(), ThreadPoolExecutor(self._n_threads) as pool:
            while self._stale:
                name = self._stale.pop()
                self._parameters_of[name].copy_(self._round(name, pool))
        return self._model[0]

    def changed(self, *_: Any) -> None:
        """Say that parameters were changed; may be a hook of an optimizer's step."""
        self._stale |= {name for name in self._roundings if self._master(name).trains}

    def settle(self) -> None:
        """Form W0 + s B A once and for all, so that the weights no longer depend on the order of a sum."""
        for name in self._roundings:
            self.masters[_key(name)] = _Frozen(self._master(name).matrix())
        self._stale = set(self._roundings)

    @torch.no_grad()
    def unround(self) -> Any:
        """The model with the weights that were rounded; what is exported."""
        for name, parameter in self._parameters_of.items():
            parameter.copy_(self._master(name).matrix())
        self._stale = set(self._roundings)
        return self._model[0]

    def train(self, mode: bool = True) -> Self:
        """Training mode, of the model too."""
        self._model[0].train(mode)
        return super().train(mode)

    def _hold(self, name: str, master: "_Master") -> None:
        self.masters[_key(name)] = master
        if master.trains:
            parameter = self._parameters_of[name].requires_grad_()
            parameter.register_post_accumulate_grad_hook(lambda weight: self._hand_over(name, weight))

    def _hand_over(self, name: str, weight: torch.Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        if gradient is not None:
            self._master(name).take(gradient)

    def _master(self, name: str) -> "_Master":
        master = self.masters[_key(name)]
        assert isinstance(master, _Master)
        return master

    def _round(self, name: str, pool: ThreadPoolExecutor) -> torch.Tensor:
        rounding, weight = self._roundings[name], self._master(name).matrix()
        matrix = weight.T if rounding.transposed else weight
        rows = np.ascontiguousarray(matrix.to("cpu", torch.float32).reshape(-1, matrix.shape[-1]).numpy())
        if not np.isfinite(rows).all():
            raise TrainingError(
                f"{name}: weights are not finite and cannot be rounded to {rounding.grid.name}; "
                "lower recover.learning_rate"
            )
        parts = [part for part in np.array_split(rows, self._n_threads) if len(part)]
        values = np.concatenate(list(pool.map(lambda p: round_rows(p, rounding.grid, rounding.importance), parts)))
        rounded = torch.from_numpy(values).reshape(matrix.shape)
        return rounded.T if rounding.transposed else rounded


class _Master(nn.Module):
    """What a parameter is rounded from."""

    trains = True

    def matrix(self) -> torch.Tensor:
        """The weight before rounding."""
        raise NotImplementedError

    def take(self, gradient: torch.Tensor) -> None:
        """Add to the gradients of what trains here, given that of the weight."""
        raise NotImplementedError


class _Whole(_Master):
    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def matrix(self) -> torch.Tensor:
        return self.weight.detach()

    def take(self, gradient: torch.Tensor) -> None:
        _add(self.weight, gradient)


class _Adapted(_Master):
    """W0 + s B A; A starts as torch's linear layers do and B as zero, as in peft."""

    def __init__(self, weight: torch.Tensor, lora: LowRank) -> None:
        super().__init__()
        self._base, self._scale = weight.detach().clone(), lora.lora_alpha / lora.r
        n_rows, n_cols = weight.shape
        self.a = nn.Parameter(torch.empty(lora.r, n_cols, device=weight.device))
        self.b = nn.Parameter(torch.zeros(n_rows, lora.r, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @torch.no_grad()
    def matrix(self) -> torch.Tensor:
        return self._base.addmm(self.b, self.a, alpha=self._scale)

    @torch.no_grad()
    def take(self, gradient: torch.Tensor) -> None:
        _add(self.a, self._scale * (self.b.T @ gradient))
        _add(self.b, self._scale * (gradient @ self.a.T))


class _Frozen(_Master):
    trains = False

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self._weight = weight.detach().clone()

    def matrix(self) -> torch.Tensor:
        return self._weight


def _add(parameter: nn.Parameter, gradient: torch.Tensor) -> None:
    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _ends(model: Any) -> list[Any]:
    """The embedding and the head."""
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _key(name: str) -> str:
    """Names of modules have no dots."""
    return name.replace(".", "/")
