"""What goes into the weight matrices of a torch model, under the names the matrices have in a GGUF file.

Shapes: T tokens, C columns of a matrix (its inputs), K experts chosen for a token.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from edgeft.errors import ModelError

TensorMap = Mapping[str, Sequence[str]]
"""GGUF tensor name -> names of the checkpoint's tensors it is made from."""

LAYERS = "blk."
EXPERTS = ".experts."


class Seen(Protocol):
    """Given an input (T, C) of the GGUF tensor `name`; `expert` is (which one, of how many) in a stack."""

    def __call__(self, name: str, inputs: torch.Tensor, expert: tuple[int, int] | None = None) -> None: ...


@contextlib.contextmanager
def linear_inputs(model: nn.Module, tensors: TensorMap, seen: Seen) -> Iterator[None]:
    """While the block lasts, give `seen` every input of the layers' matrices that `tensors` names.

    A matrix fused from several has the input of the first of them: they share it. Raises ModelError when the
    model has no module for one.
    """
    modules = modules_by_name(model)
    handles = []
    try:
        for name, sources in tensors.items():
            if not name.startswith(LAYERS) or not name.endswith(".weight") or not sources:
                continue
            if EXPERTS in sources[0]:
                module, hook = _find(modules, sources[0].partition(EXPERTS)[0] + ".experts"), _expert_hook(name, seen)
            else:
                module, hook = _find(modules, sources[0].removesuffix(".weight")), _hook(name, seen)
                if not _is_matrix(module):
                    continue
            handles.append(module.register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """By full name, and by the name below the base model: checkpoints use either."""
    base = getattr(model, "base_model", model)
    return dict(base.named_modules()) | dict(model.named_modules())


def _find(modules: Mapping[str, nn.Module], source: str) -> nn.Module:
    parts = source.split(".")
    for at in range(len(parts)):
        module = modules.get(".".join(parts[at:]))
        if module is not None:
            return module
    raise ModelError(f"transformers' model has no module {source}, whose weights the checkpoint holds")


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _hook(name: str, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen(name, args[0].reshape(-1, args[0].shape[-1]))

    return hook


def _expert_hook(name: str, seen: Seen) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """For transformers' stacks of experts: `gate_up_proj` (E, 2 I, C), `down_proj` (E, C, I), called with the
    states (T, C) and the experts chosen (T, K)."""
    inner = "_down" in name

    def hook(module: Any, args: tuple[Any, ...]) -> None:
        states, chosen = args[0], args[1]
        n_experts = len(module.down_proj)
        for expert in range(n_experts):
            rows = states[torch.where(chosen == expert)[0]]
            if inner:
                gate, up = nn.functional.linear(rows, module.gate_up_proj[expert]).chunk(2, dim=-1)
                rows = module.act_fn(gate) * up
            seen(name, rows, (expert, n_experts))

    return hook
