"""What `torch_dtype: auto` means on this machine, decided once, before anything is planned.

The decision, not the word, is what stages get and what stands in their keys: a store that two machines share never
serves one what the other made in another type.
"""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from edgeft.bench.products import PRODUCTS
from edgeft.bench.remembered import measured_once
from edgeft.console import silent_log
from edgeft.errors import EdgeftError
from edgeft.machine.compute_type import ComputeType, by_capability, by_measurement
from edgeft.machine.gpu import training_gpu
from edgeft.machine.instruction_sets import instruction_sets
from edgeft.recipe import Recipe

if TYPE_CHECKING:
    from edgeft.console import Log

AUTO = "auto"
SECTIONS = ("train", "pretrain", "recover")
"""Those with a `torch_dtype`; `distill` and `merge` compute in that of `train`."""


def settled(
    recipe: Recipe, log: "Log | None" = None, chosen: ComputeType | None = None
) -> tuple[Recipe, ComputeType | None]:
    """The recipe with every `torch_dtype: auto` replaced, and what it was replaced by; None where nothing was.

    `chosen` is that of this machine unless given.
    """
    wanting = [name for name in SECTIONS if torch_dtype_of(recipe, name) == AUTO]
    if not wanting:
        return recipe, None
    chosen = chosen or of_this_machine(log)
    update = {name: getattr(recipe, name).model_copy(update={"torch_dtype": chosen.dtype}) for name in wanting}
    return recipe.model_copy(update=update), chosen


def torch_dtype_of(recipe: Recipe, section: str) -> str | None:
    """The section's `torch_dtype`; None where the recipe has no such section."""
    found: str | None = getattr(getattr(recipe, section), "torch_dtype", None)
    return found


def of_this_machine(log: "Log | None" = None) -> ComputeType:
    """bfloat16 where it is multiplied faster than float32, else float32.

    Asked of the GPU and the processor first; where that does not tell, two products are measured once, in a child
    process, and remembered. float32 where nothing can be measured.
    """
    told = by_capability(instruction_sets(), os.environ, training_gpu())
    if told.dtype:
        return told
    if find_spec("torch") is None:
        return ComputeType("float32", f"{told.reason}, and without torch nothing can be measured")
    try:
        found = measured_once(PRODUCTS, "1", log or silent_log())
    except EdgeftError as error:
        return ComputeType("float32", f"{told.reason}, and nothing can be measured ({str(error).splitlines()[0]})")
    measured = by_measurement(found["bfloat16"], found["float32"])
    return ComputeType(measured.dtype, f"{told.reason}; {measured.reason}")
