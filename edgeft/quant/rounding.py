"""Better rounding inside one of llama.cpp's types, for the same bytes and the same kernels.

ggml rounds each weight to the nearest code between scales it searches block by block. What the model's output
feels is the error of whole rows, d' H d with H the Hessian over the inputs (`edgeft.quant.moments`), so an error
made in one column can be taken back in those still to come: GPTQ's error feedback (Frantar et al. 2023; the same
as LDLQ of QuIP, Chee et al. 2023). The scales of each block are ggml's own, searched again on the weights as the
columns before it have left them.

Shapes: R rows, C columns.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.codes import LAYOUTS, Codes, put_codes, take_apart

DAMPING = 0.1
"""Added to the diagonal of the Hessian, as a share of its mean. GPTQ's 0.01 fits the calibration tokens better
and others worse: KL 0.0026 instead of 0.0022 on held-out requests, from 6,000 tokens, for edgeft-nano in Q4_K_M."""


class FeedbackRounder:
    """Rounds the tensors whose Hessian (C, C) it has by `round_with_feedback`, and all others as ggml does.

    To be handed to `write_gguf(rounder=…)`, which calls it from several threads with some rows at a time.
    """

    def __init__(self, hessians: Mapping[str, np.ndarray]) -> None:
        """`hessians` by GGUF name, as `edgeft.quant.moments.Matrix.hessian` gives them."""
        self._hessians = hessians
        self._feedback = lru_cache(maxsize=8)(lambda name: feedback_of(hessians[name]))

    def __call__(self, name: str, rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None) -> np.ndarray:
        """`rows` float32 (R, C) of the tensor `name` in the type `kind`: packed uint8 (R, row_bytes).

        Where there is a Hessian its diagonal takes the place of `importance`.
        """
        hessian = self._hessians.get(name)
        if hessian is None or kind not in LAYOUTS:
            return ggml.quantize(rows, kind, importance)
        return round_with_feedback(rows, kind, np.diag(hessian), self._feedback(name))


def round_with_feedback(
    rows: np.ndarray, kind: GgmlType, importance: np.ndarray | None, feedback: np.ndarray
) -> np.ndarray:
    """`rows` float32 (R, C) in the type `kind`: packed uint8 (R, row_bytes).

    `importance` float32 (C,) weighs ggml's search for scales, `feedback` (C, C) is `feedback_of` the Hessian.
    Raises KeyError for a type without a layout in `edgeft.quant.grids.codes`.
    """
    width = ggml.block_size(kind)
    left = rows.astype(np.float32)
    packed = []
    for start in range(0, rows.shape[1], width):
        block = slice(start, start + width)
        data = ggml.quantize(left[:, block], kind, None if importance is None else importance[block])
        codes, errors = _round_block(left[:, block], take_apart(data, kind, width), feedback[block, block])
        packed.append(put_codes(data, kind, codes))
        left[:, start + width :] -= errors @ feedback[block, start + width :]
    return np.concatenate(packed, axis=1)


def feedback_of(hessian: np.ndarray, damping: float = DAMPING) -> np.ndarray:
    """(C, C) float32, upper triangular with ones on the diagonal: by row c the error of column c, once made, moves
    the best values of the columns behind it.

    It is U of H^-1 = U' U with each row divided by its diagonal; U is the inverse of M in H = M M' with M upper
    triangular, the Cholesky factor of H with its axes reversed.
    """
    damped = hessian.astype(np.float64)
    damped += np.eye(len(damped)) * damping * np.trace(damped) / len(damped)
    upper = np.linalg.inv(np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1])
    return np.triu(upper / np.diag(upper)[:, None]).astype(np.float32)


def _round_block(rows: np.ndarray, parts: Codes, feedback: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 (R, C) of one block of columns `rows` (R, C), and the errors float32 (R, C) to feed back."""
    left = rows.copy()
    codes, errors = parts.codes.copy(), np.empty_like(left)
    between = (parts.levels[1:] + parts.levels[:-1]) / 2
    group = left.shape[1] // parts.steps.shape[1]
    for column in range(left.shape[1]):
        steps, minimums = parts.steps[:, column // group], parts.minimums[:, column // group]
        inverse = np.divide(1, steps, out=np.zeros_like(steps), where=steps != 0)
        wanted = (left[:, column] + minimums) * inverse
        codes[:, column] = np.searchsorted(between, wanted)
        errors[:, column] = left[:, column] - (steps * parts.levels[codes[:, column]] - minimums)
        left[:, column + 1 :] -= errors[:, column, None] * feedback[column, column + 1 :]
    return codes, errors
