"""The grids of an export, by the parameters of the torch model that trains for it."""

from collections.abc import Mapping
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.gguf.grids import SourceGrid
from edgeft.quant.rounded import Rounding


def roundings_of(model: Any, grids: Mapping[str, SourceGrid]) -> dict[str, Rounding]:
    """`grids` by the names of `model.named_parameters()` in the stead of the checkpoint's.

    Raises ModelError when the model holds a tensor of the checkpoint otherwise.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    prefix = f"{model.base_model_prefix}."
    parameters = {
        spelling: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        for spelling in (name, name.removeprefix(prefix))
    }
    if missing := [source for source in grids if source not in parameters]:
        raise ModelError(
            f"transformers' model has no parameter {missing[0]}, which the checkpoint holds; its grid cannot be "
            "trained for, leave the recipe's recover section out"
        )
    return {
        names[id(parameters[source])]: Rounding(grid.grid, grid.importance, grid.transposed)
        for source, grid in grids.items()
    }
