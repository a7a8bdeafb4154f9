"""Stage `recover`: the model trained against the grid of the file that ships."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from edgeft.artifact import MANIFEST, Artifact
from edgeft.console import Log
from edgeft.errors import RecipeError
from edgeft.export.folder import open_checkpoint, read_folder
from edgeft.export.gguf.architectures.layout import lay_out
from edgeft.export.gguf.grids import SourceGrid, source_grids
from edgeft.machine.process import peak_rss_bytes
from edgeft.quant.recovery import recover
from edgeft.quant.rounded import LowRank
from edgeft.recipe import Recipe
from edgeft.sections.recover import Recover
from edgeft.stages._calibrated import settings_to_train_for
from edgeft.stages._grids import roundings_of
from edgeft.stages._json import write_json
from edgeft.stages._model import RECOVERED_FOR, final_model
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig
from edgeft.training.memory import keep_freed_memory
from edgeft.training.models import autocast_type, load_model

LARGEST_NORM = 1.0
NOT_COPIED = ("*.safetensors", "*.index.json", "config.json", "generation_config.json", "provenance.json", MANIFEST)


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write the model folder to export, in float32, with the importance matrix and the mix it was trained for.

    Metrics: `kl_before` and `kl_after`, KL(unrounded ‖ rounded) in nats a token on examples of the validation set,
    with the weights of the file. Raises ModelError for a model whose grids cannot be trained for, TrainingError
    without validation examples or when the training fails.
    """
    if recipe.recover is None:
        raise RecipeError(f"{recipe.name}: the recipe has no recover section")
    source, target = final_model(inputs), recipe.recover.target or recipe.export.shipped
    folder = next((entry for entry in recipe.export.onnx if entry.name == target), None)
    if folder is None:
        grids = _gguf_grids(recipe, target, source, inputs["data"], out, log)
    else:
        from edgeft.export.onnx.source_grids import onnx_source_grids  # a recipe without ONNX models needs no onnx
        from edgeft.stages._onnx import to_the_nearest

        grids = onnx_source_grids(source.path, to_the_nearest(folder))
    return recover_for(target, grids, recipe.recover, source, inputs["data"], out, log, seed=recipe.seed)


def recover_for(
    target: str,
    grids: Mapping[str, SourceGrid],
    section: Recover,
    source: Artifact,
    data: Artifact,
    out: Path,
    log: Log,
    *,
    seed: int,
) -> dict[str, float]:
    """Train the model of `source` for `grids`, those of the file called `target`, and write it; see `run`."""
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    torch.manual_seed(seed)
    keep_freed_memory()
    model = load_model(source.path)
    tokens, validation = (_tokens(data.file(f"tokens-{name}.npz"), section) for name in ("train", "validation"))
    plan = plan_epochs(tokens.lengths, batch_tokens=section.batch_tokens, epochs=section.num_train_epochs, seed=seed)
    log.say(
        f"recover for {target}: {len(grids)} tensors, {len(tokens):,} examples, {len(plan)} steps, "
        f"products in {section.torch_dtype}"
    )
    found = recover(
        model,
        roundings_of(model, grids),
        tokens,
        _first(validation, section.eval_examples),
        plan,
        _loop_config(section, len(plan)),
        make_optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=section.learning_rate, weight_decay=0.0, fused=True
        ),
        kd_ratio=section.kd_ratio,
        lora=LowRank(section.r, section.lora_alpha) if section.method == "lora" else None,
        out=out,
        log=log,
    )
    found.model.save_pretrained(out)
    _complete(out, source, {RECOVERED_FOR: target} if found.kl_after < found.kl_before else {})
    return {
        "kl_before": found.kl_before,
        "kl_after": found.kl_after,
        "steps": float(found.loop.steps),
        "seconds": found.loop.seconds,
        "peak_rss_bytes": float(peak_rss_bytes()),
    }


def _gguf_grids(
    recipe: Recipe, ftype: str, source: Artifact, data: Artifact, out: Path, log: Log
) -> Mapping[str, SourceGrid]:
    entry = next(entry for entry in recipe.export.gguf if entry.ftype == ftype)
    settings = settings_to_train_for(recipe, entry, source.path, data, out, log)
    layout = lay_out(read_folder(source.path), open_checkpoint(source.path))
    return source_grids(layout, settings.ftype or entry.ftype, imatrix=settings.imatrix, types=settings.types)


def _tokens(path: Path, section: Recover) -> TokenSet:
    """The examples with the positions to compare: every one that has a next token, or those of answers."""
    tokens = TokenSet.load(path)
    if section.completion_only_loss:
        return tokens
    return replace(tokens, loss_mask=np.ones_like(tokens.loss_mask))


def _first(tokens: TokenSet, n: int) -> TokenSet:
    """The first `n` examples."""
    offsets = tokens.offsets[: n + 1]
    return TokenSet(tokens.input_ids[: offsets[-1]], tokens.loss_mask[: offsets[-1]], offsets)


def _loop_config(section: Recover, steps: int) -> LoopConfig:
    epoch_steps = max(1, round(steps / section.num_train_epochs))
    return LoopConfig(
        learning_rate=section.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=section.warmup_steps,
        max_grad_norm=LARGEST_NORM,
        micro_batch_tokens=section.micro_batch_tokens,
        save=SaveRule(epoch_steps=epoch_steps, steps=section.save_steps),
        eval_steps=section.eval_steps or epoch_steps,
        autocast=autocast_type(section.torch_dtype),
    )


def _complete(out: Path, source: Artifact, provenance: dict[str, str]) -> None:
    """Everything of the model folder that training leaves as it is, and what more is known of where it comes from."""
    left = {path for pattern in NOT_COPIED for path in source.path.glob(pattern)}
    for path in source.path.iterdir():
        if path.is_file() and path not in left and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)
    known = json.loads(source.file("provenance.json").read_text("utf-8"))
    write_json(out / "provenance.json", known | provenance)
