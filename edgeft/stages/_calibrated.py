"""What GGUF files learn from calibration tokens before they are written: importance, a mix of types, rounding."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import Layout, lay_out
from edgeft.export.gguf.export import Settings
from edgeft.export.gguf.tensor_types import tensor_types
from edgeft.quant.auto import GgufTensor, Mix, auto_mix
from edgeft.quant.calibration import Calibration
from edgeft.quant.collect import collect_imatrix, folder_calibration
from edgeft.quant.imatrix import Imatrix, read_imatrix, write_imatrix
from edgeft.quant.moments import collect_moments
from edgeft.quant.planner import read_plan, write_plan
from edgeft.quant.rounding import FeedbackRounder
from edgeft.recipe import Recipe
from edgeft.sections import Gguf
from edgeft.stages._model import recovered_for
from edgeft.training.models import load_model

CHUNK_SIZE = 512
IMATRIX, MIX = "imatrix.gguf", "mix.json"
MIX_OF = "Q4_K_M"
"""Where a mix starts: its bytes unless the recipe says otherwise, and its types for what cannot be measured."""


def calibrated_settings(
    recipe: Recipe, model: Path, data: Artifact, out: Path, log: Log, *, recovered: Path | None = None
) -> dict[str, Settings]:
    """By ftype, for the entries of `export.gguf` that ask for more than llama.cpp's own rules.

    The one that the model in `recovered` was trained for is made of that, with what it was trained for. Writes the
    plan of a mix to out/mix.json. Raises DataError without anything to calibrate on, ModelError for a model that
    cannot be loaded or overflows, UsageError for a mix whose limits cannot be met.
    """
    measured = Measured(recipe, model, data, log)
    settings: dict[str, Settings] = {}
    for entry in recipe.export.gguf:
        if recovered is not None and entry.ftype == recovered_for(recovered):
            settings[entry.ftype] = replace(_trained_for(entry, recovered), model_dir=recovered)
            if entry.ftype == "auto":
                write_plan(out / MIX, read_plan(recovered / MIX))
        elif entry.imatrix or entry.ftype == "auto" or entry.rounding != "nearest":
            settings[entry.ftype] = _settings(entry, measured, out, log)
    return settings


def settings_to_train_for(recipe: Recipe, entry: Gguf, model: Path, data: Artifact, out: Path, log: Log) -> Settings:
    """How `entry` will be exported of a model trained for it: the importance and the mix of the model as it is now.

    They are written to `out`, where an interrupted run finds them again, and beside the trained model the export
    does. Rounding is llama.cpp's own: error feedback moves with the calibration tokens and cannot be trained for.
    Raises as `calibrated_settings` does.
    """
    measured = Measured(recipe, model, data, log)
    if entry.imatrix and not (out / IMATRIX).exists():
        write_imatrix(out / IMATRIX, measured.imatrix)
    if entry.ftype == "auto" and not (out / MIX).exists():
        write_plan(out / MIX, _mix(entry, measured, log).plan)
    return _trained_for(entry, out)


def _trained_for(entry: Gguf, folder: Path) -> Settings:
    mixed = entry.ftype == "auto"
    return Settings(
        imatrix=read_imatrix(folder / IMATRIX) if entry.imatrix else None,
        types=read_plan(folder / MIX).types if mixed else None,
        ftype=MIX_OF if mixed else None,
    )


@dataclass(frozen=True)
class Measured:
    """The model and its calibration tokens, each measured once for all files, when first asked for."""

    recipe: Recipe
    folder: Path
    data: Artifact
    log: Log

    @cached_property
    def layout(self) -> Layout:
        return lay_out(read_folder(self.folder), open_checkpoint(self.folder))

    @cached_property
    def model(self) -> Any:
        return load_model(self.folder)

    @cached_property
    def calibration(self) -> Calibration:
        with as_file(files("edgeft") / "assets" / "canary.txt") as text:
            return folder_calibration(
                self.folder,
                examples=self.data.file("train.jsonl"),
                text=text,
                max_tokens=self.recipe.export.calibration_tokens,
                chunk_size=CHUNK_SIZE,
                seed=self.recipe.seed,
            )

    @property
    def sources(self) -> Mapping[str, tuple[str, ...]]:
        return {rule.name: rule.sources for rule in self.layout.rules}

    @cached_property
    def imatrix(self) -> Imatrix:
        return collect_imatrix(self.model, self.calibration, self.sources, chunk_size=CHUNK_SIZE, log=self.log)

    @cached_property
    def rounder(self) -> FeedbackRounder:
        matrices = collect_moments(self.model, self.calibration.sequences, self.sources, log=self.log)
        return FeedbackRounder({name: matrix.hessian for name, matrix in matrices.items()})


def _settings(entry: Gguf, measured: Measured, out: Path, log: Log) -> Settings:
    imatrix = measured.imatrix if entry.imatrix else None
    if entry.ftype != "auto":
        return Settings(imatrix=imatrix, rounder=measured.rounder if entry.rounding == "feedback" else None)
    mix = _mix(entry, measured, log)
    write_plan(out / MIX, mix.plan)
    return Settings(imatrix=imatrix, types=mix.plan.types, rounder=mix.rounder, ftype=MIX_OF)


def _mix(entry: Gguf, measured: Measured, log: Log) -> Mix:
    layout = measured.layout
    shapes = [(rule.name, rule.shape) for rule in layout.rules]
    kinds = tensor_types(MIX_OF, shapes, layout.hyperparameters, importance=entry.imatrix)
    return auto_mix(
        measured.model,
        measured.calibration.sequences,
        {rule.name: GgufTensor(rule.sources, rule.shape, kinds[rule.name]) for rule in layout.rules},
        target_bytes=entry.target_bytes,
        max_kl=entry.max_kl,
        log=log,
    )
