"""How the tensors of a checkpoint are rounded when a GGUF file is made of it, told by their own names and axes.

For whoever needs a file's values without the file: training against it. ggml rounds rows one by one, so a rule that
reorders rows changes nothing, and one that transposes only which axis the rows are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.base import unchanged
from edgeft.export.gguf.architectures.layout import Layout
from edgeft.export.gguf.write import targets_of, types_of
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.onnx import MatMulNBits
from edgeft.quant.imatrix import Imatrix


@dataclass(frozen=True)
class SourceGrid:
    """The grid of a tensor in the file, with the importance (columns,) it is rounded by; `transposed`: the file's
    rows are the last axis of the checkpoint's tensor."""

    grid: GgmlType | MatMulNBits
    transposed: bool
    importance: np.ndarray | None = None


def source_grids(
    layout: Layout, ftype: str, *, imatrix: Imatrix | None = None, types: Mapping[str, GgmlType] | None = None
) -> dict[str, SourceGrid]:
    """By the checkpoint's names, every tensor that `write_gguf` with these arguments holds in less than float32.

    Raises what `write_gguf` does, and ModelError where a tensor of the file is made of several, or its columns are
    not in the checkpoint's order: then no grid of the source's own exists.
    """
    grids = {}
    for target in targets_of(layout, ftype, types_of(layout, ftype, imatrix, types), imatrix):
        if target.slot.kind != GgmlType.F32:
            source, transposed = whole_source(target.rule)
            importance = None if target.importance is None else target.importance.reshape(-1)
            grids[source] = SourceGrid(target.slot.kind, transposed, importance)
    return grids


def whole_source(rule: TensorRule) -> tuple[str, bool]:
    """The one tensor of the checkpoint whose rows, in any order, `rule` makes; and whether its columns are the rows.

    Raises ModelError when there is none: then the tensor has no grid in the checkpoint's own terms.
    """
    transposed = _is_transposed(rule) if len(rule.sources) == 1 else None
    if transposed is None:
        raise ModelError(
            f"{rule.name} is made of {len(rule.sources)} tensors, or with its columns in another order: its grid "
            "cannot be trained for; leave the recipe's recover section out"
        )
    return rule.sources[0], transposed


def _is_transposed(rule: TensorRule) -> bool | None:
    """Whether the rows the rule makes are the source's columns; None unless every row is a whole one, in order."""
    if rule.change is unchanged:
        return False
    (stored,) = rule.stored_shapes.values()
    if len(stored) != 2 or np.prod(stored) != np.prod(rule.shape):
        return None
    n_rows, n_cols = stored
    places = rule.change(np.arange(n_rows * n_cols).reshape(stored))
    at_row, at_col = places // n_cols, places % n_cols
    if places.shape == stored and (at_col == np.arange(n_cols)).all() and (at_row == at_row[:, :1]).all():
        return False
    if places.shape == (n_cols, n_rows) and (at_row == np.arange(n_rows)).all() and (at_col == at_col[:, :1]).all():
        return True
    return None
