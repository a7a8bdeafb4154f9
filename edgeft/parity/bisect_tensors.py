"""A file's tensors, dequantized, against the checkpoint's through the architecture's mapping.

Shapes: N rows of C columns; a vector is one row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from edgeft.console import Log
from edgeft.export.folder import Checkpoint
from edgeft.export.gguf.architectures import TensorRule
from edgeft.export.gguf.architectures.layout import EMBEDDING
from edgeft.parity.finding import Finding
from edgeft.quant import ggml
from edgeft.quant.ggml import GgmlType
from edgeft.runtime.gguf_format import Header, TensorInfo

OWN_ERRORS = 3.0
"""How much farther than by plain rounding a row may be: rounding that minimizes an output's error, or weighs the
columns, leaves larger errors in the weights."""
MOST = 0.9
"""No rounding leaves a relative error of this; unrelated rows differ by 1.4."""
ROUNDING = 1e-6
N_WORST = 8
BLOCK_ROWS = 4096
SAMPLE_ROWS, MOST_ROWS_ORDERED = 256, 1 << 15


@dataclass(frozen=True)
class _Pair:
    """A tensor as the file has it and as it should be, float32 (N, C) each."""

    rule: TensorRule
    kind: GgmlType
    here: np.ndarray
    there: np.ndarray

    def sampled(self, rows: np.ndarray) -> "_Pair":
        """Only these rows."""
        return _Pair(self.rule, self.kind, self.here[rows], self.there[rows])


def tensor_findings(
    header: Header, rules: Sequence[TensorRule], checkpoint: Checkpoint, tokens: Sequence[str], log: Log
) -> Iterator[Finding]:
    """Tensors that are missing, too many, of another shape, or farther from the checkpoint's than their type allows.

    A row's error is compared with what plain rounding to its type makes of that row. `tokens` name the
    embedding's rows.
    """
    for rule in rules:
        info = header.tensors.get(rule.name)
        if info is None:
            yield Finding("tensor", rule.name, f"{rule.name} is missing from the file; {_made_of(rule)}")
        elif _squeezed(info.shape) != _squeezed(rule.shape):
            shapes = f"the shape {info.shape} in the file, {rule.shape} by config.json"
            yield Finding("tensor", rule.name, f"{rule.name} has {shapes}; {_made_of(rule)}")
    for name in header.tensors:
        if name not in {rule.name for rule in rules}:
            yield Finding("tensor", name, f"{name} is in the file, but nothing in the checkpoint becomes it")
    with log.progress("bisect: weights", len(rules), "tensors") as progress:
        for done, rule in enumerate(rules, 1):
            if rule.name in header.tensors:
                yield from _compare(header, rule, rules, checkpoint, tokens)
            progress.update(done)


def _compare(
    header: Header, rule: TensorRule, rules: Sequence[TensorRule], checkpoint: Checkpoint, tokens: Sequence[str]
) -> Iterator[Finding]:
    info = header.tensors[rule.name]
    pair = _Pair(rule, GgmlType(info.kind), _stored(header, info), _expected(rule, checkpoint))
    if not np.isfinite(pair.here).all():
        yield Finding("tensor", rule.name, f"{rule.name} holds values that are not finite")
        return
    errors = _row_errors(pair.here, pair.there)
    worst = np.argsort(errors)[-N_WORST:][::-1]
    if all(errors[row] <= _allowed(pair.sampled(worst[i : i + 1])) for i, row in enumerate(worst)):
        return
    yield Finding("tensor", rule.name, f"{rule.name}: {_explained(pair, errors, rules, checkpoint, tokens)}")


def _stored(header: Header, info: TensorInfo) -> np.ndarray:
    kind, cols = GgmlType(info.kind), info.shape[-1]
    data = np.memmap(header.path, np.uint8, "r", info.start, (info.n_bytes,)).reshape(-1, ggml.row_bytes(kind, cols))
    rows = np.empty((len(data), cols), np.float32)
    for at in range(0, len(data), BLOCK_ROWS):
        rows[at : at + BLOCK_ROWS] = ggml.dequantize(data[at : at + BLOCK_ROWS], kind, cols)
    return rows


def _expected(rule: TensorRule, checkpoint: Checkpoint) -> np.ndarray:
    tensor = rule.change(*[checkpoint.read(source) for source in rule.sources])
    return np.asarray(tensor, np.float32).reshape(-1, rule.shape[-1])


def _row_errors(here: np.ndarray, there: np.ndarray) -> np.ndarray:
    """|here - there| / |there| of each row (N,), in blocks; 0 where both are zero."""
    errors = np.zeros(len(there))
    for at in range(0, len(there), BLOCK_ROWS):
        ours, theirs = here[at : at + BLOCK_ROWS].astype(np.float64), there[at : at + BLOCK_ROWS]
        off, norm = np.linalg.norm(ours - theirs, axis=1), np.linalg.norm(theirs, axis=1)
        errors[at : at + BLOCK_ROWS] = np.divide(off, norm, out=np.where(off > 0, np.inf, 0.0), where=norm > 0)
    return errors


def _allowed(pair: _Pair) -> float:
    """The largest relative error that rounding `pair.there` to its type explains."""
    cols = pair.there.shape[1]
    importance = np.ones(cols, np.float32) if ggml.needs_importance(pair.kind) else None
    rounded = ggml.dequantize(ggml.quantize(pair.there, pair.kind, importance), pair.kind, cols)
    own = float(_row_errors(rounded, pair.there).max(initial=0.0))
    return min(OWN_ERRORS * own, MOST) + ROUNDING


def _explained(
    pair: _Pair, errors: np.ndarray, rules: Sequence[TensorRule], checkpoint: Checkpoint, tokens: Sequence[str]
) -> str:
    """The simplest account of the difference that fits; else where it is largest."""
    rows = np.unique(np.linspace(0, len(errors) - 1, min(len(errors), SAMPLE_ROWS)).astype(int))
    sample = pair.sampled(rows)
    limit = _allowed(sample)
    if _fits(sample.here, sample.there, limit):
        return _worst_rows(pair, errors, tokens)
    scale = float((sample.here.astype(np.float64) * sample.there).sum() / (sample.there.astype(np.float64) ** 2).sum())
    if scale > 0 and _fits(sample.here, sample.there * scale, limit):
        return f"{scale:.6g} times what it should be; {_made_of(pair.rule)}: is a scale missing, or applied twice?"
    offset = float((sample.here - sample.there).mean(dtype=np.float64))
    if _fits(sample.here, sample.there + offset, limit):
        return f"off by {offset:.6g} everywhere; {_made_of(pair.rule)}: is the 1 of a norm's 1 + weight missing?"
    if _holds_source(sample, rows, checkpoint, limit):
        return f"rows in the order of {pair.rule.sources[0]}; llama.cpp wants them in another"
    if order := _other_order(sample, rows, pair.there):
        return f"the rows of {' and '.join(pair.rule.sources)} in another order: {order}"
    if other := _other_tensor(sample, rows, rules, checkpoint, limit):
        return f"rows are not those of {' and '.join(pair.rule.sources)} but of {' and '.join(other.sources)}"
    return _worst_rows(pair, errors, tokens)


def _fits(here: np.ndarray, there: np.ndarray, limit: float) -> bool:
    return bool(np.median(_row_errors(here, there)) <= limit)


def _holds_source(sample: _Pair, rows: np.ndarray, checkpoint: Checkpoint, limit: float) -> bool:
    """Whether the file has the checkpoint's tensor without the change the mapping makes."""
    if len(sample.rule.sources) != 1:
        return False
    raw = np.asarray(checkpoint.read(sample.rule.sources[0]), np.float32)
    if raw.size % sample.here.shape[1] or raw.shape != sample.rule.shape:
        return False
    return _fits(sample.here, raw.reshape(-1, sample.here.shape[1])[rows], limit)


def _other_order(sample: _Pair, rows: np.ndarray, there: np.ndarray) -> str | None:
    """Which row the first misplaced one is, where most rows of the file are rows of `there`."""
    if sample.here.shape[1] < 2 or not 1 < len(there) <= MOST_ROWS_ORDERED:
        return None
    likeness = _unit(sample.here) @ _unit(there).T
    nearest = likeness.argmax(axis=1)
    moved = np.flatnonzero(nearest != rows)
    if np.median(likeness.max(axis=1)) < MOST or not len(moved):
        return None
    return f"row {rows[moved[0]]} of the file is row {nearest[moved[0]]}"


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; those of zeros stay."""
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return unit


def _other_tensor(
    sample: _Pair, rows: np.ndarray, rules: Sequence[TensorRule], checkpoint: Checkpoint, limit: float
) -> TensorRule | None:
    """The rule whose tensor the file has under this one's name; the same layer's are tried first."""
    layer = "".join(sample.rule.name.rpartition(".")[0].rpartition(".")[:2])  # `blk.3.` of `blk.3.attn_k.weight`
    alike = [rule for rule in rules if rule.shape == sample.rule.shape and rule.name != sample.rule.name]
    for rule in sorted(alike, key=lambda rule: not rule.name.startswith(layer)):
        if _fits(sample.here, _expected(rule, checkpoint)[rows], limit):
            return rule
    return None


def _worst_rows(pair: _Pair, errors: np.ndarray, tokens: Sequence[str]) -> str:
    worst = int(errors.argmax())
    allowed = _allowed(pair.sampled(np.array([worst])))
    n_wrong = int((errors > allowed).sum())
    token = f" (token {tokens[worst]!r})" if pair.rule.name == EMBEDDING and worst < len(tokens) else ""
    return (
        f"{n_wrong} of {len(errors)} rows are not those of {' and '.join(pair.rule.sources) or 'the mapping'}: row "
        f"{worst}{token} is off by {errors[worst]:.3g} of its length; {pair.kind.name} explains {allowed:.3g}"
    )


def _made_of(rule: TensorRule) -> str:
    return f"it is made from {' and '.join(rule.sources)}" if rule.sources else "it is made from config.json"


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without leading ones, which a file does not keep."""
    at = next((i for i, n in enumerate(shape[:-1]) if n != 1), len(shape) - 1)
    return shape[at:]
