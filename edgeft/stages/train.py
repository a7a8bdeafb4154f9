"""Stage `train`: fine-tuning, with adapters or in full, in one phase or several."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from edgeft.artifact import Artifact, write_atomic
from edgeft.console import Log
from edgeft.errors import ModelError, RecipeError
from edgeft.machine.process import peak_rss_bytes
from edgeft.recipe import Recipe
from edgeft.sections import Phase, Train
from edgeft.stages._classifier import read_labels, watch_validation, write_evaluation
from edgeft.stages._economy import economize
from edgeft.stages._tasks import Setting, Task, make_task
from edgeft.training import checkpoint
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.attention import use_packed_attention
from edgeft.training.automatic import choose_hyperparameters
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.distributed import Workers, distributed
from edgeft.training.encoders import (
    attach_classifier_lora,
    check_fits,
    classification_loss_sum,
    load_classifier,
    save_classifier,
)
from edgeft.training.keeping import SaveRule
from edgeft.training.labels import LabelSet
from edgeft.training.loop import LoopConfig, LoopResult, train_loop
from edgeft.training.memory import keep_freed_memory
from edgeft.training.models import autocast_type, base_sha256, load_model, load_tokenizer, resolve_base
from edgeft.training.optim import make_adamw
from edgeft.training.reporting import open_reporters
from edgeft.training.watching import canary_loss, canary_tokens

CANARY_LENGTH = 512
LARGEST_LOSS = 50.0  # nats; e^50 is as good as infinite, and fits a JSON number


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write `adapter/` (peft) or `model/` (Hugging Face folder), log.jsonl and summary.json.

    Under torchrun the workers share every batch; the first of them writes, the others return no metrics.
    """
    with distributed() as workers:
        return _run(recipe, inputs, out, log, workers)


def _run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log, workers: Workers) -> dict[str, float]:
    section = recipe.train
    if section is None:
        raise RecipeError(f"{recipe.name}: the recipe has no train section")
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    torch.manual_seed(recipe.seed)
    keep_freed_memory()
    base, data = resolve_base(recipe), inputs["data"]
    section = _chosen(section, data, base, log)
    classifies = section.phases()[0].objective == "classification"
    train = _train_classifier if classifies else _train_language_model
    result, measured, n_trained = train(recipe, section, base, data, out, log, workers)
    if not workers.writes:
        return {}
    metrics = {
        "train_loss": result.last_loss,
        "first_loss": result.first_loss,
        "steps": float(result.steps),
        "tokens": float(result.tokens),
        "seconds": result.seconds,
        "trained_parameters": float(n_trained),
        "peak_rss_bytes": float(peak_rss_bytes()),
        **result.metrics,
        **measured,
    }
    summary = {
        "method": section.method,
        "torch_dtype": section.torch_dtype,
        "objectives": [phase.objective for phase in section.phases()],
        "base": recipe.model.base,
        "base_sha256": base_sha256(base),
        "stopped_early": result.stopped_early,
        "best_step": result.best_step,
        "overfitting_since": result.overfitting_since,
        **metrics,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return metrics


Trained = tuple[LoopResult, dict[str, float], int]


def _train_language_model(
    recipe: Recipe, section: Train, base: Path, data: Artifact, out: Path, log: Log, workers: Workers
) -> Trained:
    """Every phase from where the one before stopped; general English is measured before and after."""
    model = _load(base, section, int(TokenSet.load(data.file("tokens-train.npz")).input_ids.max()))
    trained = model if section.method == "full" else attach_lora(model, section.lora)
    n_trained = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    log.say(f"{section.method}: {n_trained:,} trained parameters, products in {section.torch_dtype}")
    economize(model, trained, section, log)
    canary = canary_tokens(load_tokenizer(data.path / "tokenizer"), CANARY_LENGTH)
    measured = {"canary_perplexity_before": _perplexity(model, trained, canary)}
    phases = section.phases()
    folders = [out / "checkpoint" / f"{number}-{phase.objective}" for number, phase in enumerate(phases, 1)]
    if len(phases) == 1:
        folders = [out]
    results = []
    for number, (phase, folder) in enumerate(zip(phases, folders, strict=True), 1):
        setting = Setting(
            section, phase, base, data, model, trained, folder, autocast_type(section.torch_dtype), log, workers
        )
        results.append(_run_phase(recipe, setting, last=number == len(phases)))
    if len(phases) > 1 and workers.writes:
        _join_logs(out, folders)
    measured["canary_perplexity_after"] = _perplexity(model, trained, canary)
    log.say("perplexity of general English: {:.1f} before, {:.1f} after".format(*measured.values()))
    if not workers.writes:
        return results[-1], measured, n_trained
    if isinstance(trained, PeftModel):
        save_adapter(trained, out / "adapter", recipe.model.base)
    else:
        model.save_pretrained(out / "model")
    return results[-1], measured, n_trained


def _perplexity(model: PreTrainedModel, trained: torch.nn.Module, canary: TokenSet) -> float:
    use_packed_attention(model)
    return math.exp(min(canary_loss(trained, canary), LARGEST_LOSS))


def _run_phase(recipe: Recipe, setting: Setting, *, last: bool) -> LoopResult:
    """One phase; one that is done already is taken from its folder."""
    section, phase, folder, log = setting.section, setting.phase, setting.folder, setting.log
    done, kept = folder / "done.json", folder / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    if done.exists():
        checkpoint.load_best(folder, setting.trained, 0)
        return LoopResult(**json.loads(done.read_text("utf-8")))
    task = make_task(setting)
    result = _loop(recipe, section, phase, setting.trained, task, folder, log, setting.workers)
    if not last and setting.workers.writes:
        checkpoint.save_best(folder, setting.trained, 0)
        write_atomic(done, json.dumps(asdict(result)))
        checkpoint.drop_best(kept, [])
    setting.workers.wait()
    return result


def _train_classifier(
    recipe: Recipe, section: Train, base: Path, data: Artifact, out: Path, log: Log, workers: Workers
) -> Trained:
    """An encoder with a classification head; the test split is classified at the end."""
    labels = read_labels(data)
    dtype = section.torch_dtype if section.method == "lora" else "float32"
    model = load_classifier(base, labels, dtype, seed=recipe.seed)
    trained = model if section.method == "full" else attach_classifier_lora(model, section.lora)
    n_trained = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    log.say(
        f"{section.method}: {n_trained:,} trained parameters, {len(labels)} labels, products in {section.torch_dtype}"
    )
    validation = LabelSet.load(data.file("tokens-validation.npz"))
    examples = LabelSet.load(data.file("tokens-train.npz"))
    for split in (examples, validation, LabelSet.load(data.file("tokens-test.npz"))):
        check_fits(model, split, base)
    task = Task(
        examples,
        validation if len(validation) else None,
        classification_loss_sum,
        [watch_validation(data, labels, autocast_type(section.torch_dtype))] if len(validation) else [],
    )
    result = _loop(recipe, section, section.phases()[0], trained, task, out, log, workers)
    if not workers.writes:
        return result, {}, n_trained
    measured = write_evaluation(trained, data, labels, (), out)
    log.say("test: " + ", ".join(f"{name.removeprefix('test_')} {value:.4f}" for name, value in measured.items()))
    save_classifier(trained, out / "model")
    return result, measured, n_trained


def _loop(
    recipe: Recipe,
    section: Train,
    phase: Phase,
    trained: torch.nn.Module,
    task: Task,
    folder: Path,
    log: Log,
    workers: Workers,
) -> LoopResult:
    plan = plan_epochs(
        task.examples.lengths,
        batch_tokens=phase.batch_tokens,
        epochs=phase.num_train_epochs,
        seed=recipe.seed,
    )
    log.say(f"{phase.objective}: {len(task.examples):,} examples, {len(plan)} steps")
    parameters = recipe.train.model_dump(mode="json", exclude_unset=True)
    with open_reporters(
        section.report_to if workers.writes else [],
        folder=folder,
        run_name=f"{phase.objective}, seed {recipe.seed}",
        log=log,
        parameters=parameters,
    ) as reporters:
        return train_loop(
            trained,
            make_adamw(trained.parameters(), section),
            task.examples,
            plan,
            task.loss_sum,
            _loop_config(section, phase, len(plan), task),
            out=folder,
            log=log,
            validation=task.validation,
            label=phase.objective,
            watch=task.watch,
            reporters=reporters,
            workers=workers,
        )


def _chosen(section: Train, data: Artifact, base: Path, log: Log) -> Train:
    """The section, with the values `hyperparameters: auto` chooses."""
    if section.hyperparameters != "auto":
        return section
    counts, config = data.metrics, json.loads((base / "config.json").read_bytes())
    given = counts["train_examples"]
    of_each = 1 + counts.get("train_variants", 0.0) / max(1.0, given)  # variants are examples too
    choice = choose_hyperparameters(
        section,
        n_examples=int(given * of_each),
        n_tokens=int(counts["train_tokens"] * of_each),
        longest=int(counts["train_longest"]),
        hidden_size=int(config.get("hidden_size") or config.get("n_embd") or config["dim"]),
        n_validation=int(counts.get("validation_examples", 0)),
    )
    for sentence in choice.sentences:
        log.say(sentence)
    return choice.section


def _load(base: Path, section: Train, largest_id: int) -> PreTrainedModel:
    """The base ready to train: whole in float32, or frozen in the compute type, or in NF4."""
    if section.method == "full":
        model = load_model(base, "float32")
    elif section.method == "lora":
        model = load_model(base, section.torch_dtype)
    else:
        model = load_model(base, section.torch_dtype, quantization_config=nf4_config(section.torch_dtype))
    rows = model.config.get_text_config().vocab_size
    if largest_id >= rows:
        raise ModelError(
            f"{base}: the tokenizer makes token id {largest_id}, but the model knows only {rows} tokens; "
            "tokenizer and weights do not belong together"
        )
    return model


def _loop_config(section: Train, phase: Phase, steps: int, task: Task) -> LoopConfig:
    best = section.metric_for_best_model
    judged = phase.objective in ("sft", "classification") or (best == "eval_loss" and task.validation is not None)
    epoch_steps = max(1, round(steps / phase.num_train_epochs))
    return LoopConfig(
        learning_rate=phase.learning_rate,
        lr_scheduler_type=section.lr_scheduler_type,
        warmup_steps=section.warmup_steps,
        max_grad_norm=section.max_grad_norm or float("inf"),
        micro_batch_tokens=section.micro_batch_tokens,
        save=SaveRule(epoch_steps=epoch_steps, steps=section.save_steps),
        eval_steps=section.eval_steps or epoch_steps,
        autocast=autocast_type(section.torch_dtype),
        resume=section.resume_from_checkpoint,
        metric_for_best_model=best if judged else None,
        early_stopping_patience=section.early_stopping_patience if judged else None,
    )


def _join_logs(out: Path, folders: list[Path]) -> None:
    """One log.jsonl of all phases, each row with the number of its phase."""
    with (out / "log.jsonl").open("w", encoding="utf-8") as joined:
        for number, folder in enumerate(folders, 1):
            for line in (folder / "log.jsonl").read_text("utf-8").splitlines():
                joined.write(json.dumps({"phase": number, **json.loads(line)}) + "\n")
