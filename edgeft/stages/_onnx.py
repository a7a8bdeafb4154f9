"""What the entries of `export.onnx` mean: their grids, and what they learn from calibration tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.export.folder import read_folder
from edgeft.export.onnx.export import lay_out_decoder, tensor_sources
from edgeft.export.onnx.groups import groups_of
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.export.onnx.settings import EIGHT_BITS_SINCE, OnnxSettings
from edgeft.quant.grids.onnx import MatMulNBits, matrix_bytes
from edgeft.quant.onnx_auto import calibrated_rounder, plan_grids
from edgeft.quant.onnx_rounding import UNCALIBRATED
from edgeft.recipe import Recipe
from edgeft.sections import Onnx
from edgeft.stages._calibrated import Measured

MIX_OF = MatMulNBits(4, 32)
"""A mix takes no more bytes than this grid everywhere, unless the recipe says otherwise."""


def onnx_settings(
    recipe: Recipe, model: Path, data: Artifact, log: Log, *, recovered: str | None = None
) -> dict[str, OnnxSettings]:
    """By name, for every entry of `export.onnx`; the one called `recovered` is rounded as `recover` trained for it.

    Raises DataError without anything to calibrate on, ModelError for a model that cannot be loaded or overflows,
    UsageError for a mix whose limits cannot be met and for an onnxruntime too old.
    """
    measured = Measured(recipe, model, data, log)
    return {
        entry.name: to_the_nearest(entry) if entry.name == recovered else _settings(entry, measured, log)
        for entry in recipe.export.onnx
    }


def to_the_nearest(entry: Onnx) -> OnnxSettings:
    """The entry, which is no mix, with weights rounded to the nearest whatever its `method`."""
    dtype: Any = entry.dtype
    return OnnxSettings(dtype, **_fields(entry))


def _fields(entry: Onnx) -> dict[str, Any]:
    return entry.model_dump(exclude={"dtype", "method", "target_bytes"})


def _settings(entry: Onnx, measured: Measured, log: Log) -> OnnxSettings:
    fields = _fields(entry)
    if entry.dtype in ("fp16", "fp32"):
        return to_the_nearest(entry)
    if entry.dtype != "auto":
        return replace(to_the_nearest(entry), rounder=_rounder(entry, measured, log))
    layout, decoder = lay_out_decoder(read_folder(measured.folder))
    rules = onnx_rules(layout.rules)
    oldest = OnnxSettings("int4", **fields).oldest_ort(decoder)
    groups = groups_of(rules, EIGHT_BITS_SINCE if entry.min_ort is None else oldest)
    target = entry.target_bytes or sum(
        matrix_bytes(shape, MIX_OF) for group in groups.values() for shape in group.tensors.values()
    )
    sources = {name: rule.sources for name, rule in rules.items()}
    sequences = measured.calibration.sequences
    grids, rounder = plan_grids(measured.model, sequences, sources, groups, target_bytes=target, log=log)
    return OnnxSettings("int4", **fields, grids=grids, rounder=rounder)


def _rounder(entry: Onnx, measured: Measured, log: Log) -> Any:
    if entry.method in UNCALIBRATED:
        return UNCALIBRATED[entry.method]
    sources = tensor_sources(measured.folder)
    method: Any = entry.method
    return calibrated_rounder(measured.model, measured.calibration.sequences, sources, method, log=log)
