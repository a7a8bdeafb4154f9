"""Stage `train`: fine-tuning on the assistant's turns, with adapters or in full."""

import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.errors import ModelError, RecipeError
from edgeft.recipe import Recipe
from edgeft.sections import Train
from edgeft.training.adapters import attach_lora, nf4_config, save_adapter
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.loop import LoopConfig, train_loop
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.memory import keep_freed_memory
from edgeft.training.models import DTYPES, base_sha256, load_model, resolve_base


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write `adapter/` (peft) or `model/` (Hugging Face folder), log.jsonl and summary.json."""
    section = recipe.train
    if section is None:
        raise RecipeError(f"{recipe.name}: the recipe has no train section")
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    torch.manual_seed(recipe.seed)
    keep_freed_memory()
    base = resolve_base(recipe)
    tokens = TokenSet.load(inputs["data"].file("tokens-train.npz"))
    validation = TokenSet.load(inputs["data"].file("tokens-validation.npz"))
    plan = plan_epochs(
        tokens.lengths, batch_tokens=section.batch_tokens, epochs=section.num_train_epochs, seed=recipe.seed
    )
    model = _load(base, section, int(tokens.input_ids.max()))
    use_packed_attention(model)
    trained = model if section.method == "full" else attach_lora(model, section.lora)
    n_trained = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    log.say(f"{section.method}: {n_trained:,} trained parameters, {len(tokens):,} examples, {len(plan)} steps")
    optimizer = torch.optim.AdamW(
        [p for p in trained.parameters() if p.requires_grad],
        lr=section.learning_rate,
        betas=(section.adam_beta1, section.adam_beta2),
        eps=section.adam_epsilon,
        weight_decay=section.weight_decay,
    )
    result = train_loop(
        trained,
        optimizer,
        tokens,
        plan,
        next_token_loss_sum,
        _loop_config(section, len(plan)),
        out=out,
        log=log,
        validation=validation if len(validation) else None,
    )
    if isinstance(trained, PeftModel):
        save_adapter(trained, out / "adapter", recipe.model.base)
    else:
        model.save_pretrained(out / "model")
    metrics = {
        "train_loss": result.last_loss,
        "first_loss": result.first_loss,
        "steps": float(result.steps),
        "tokens": float(result.tokens),
        "seconds": result.seconds,
        "trained_parameters": float(n_trained),
    }
    if result.eval_loss is not None:
        metrics["eval_loss"] = result.eval_loss
    summary = {
        "method": section.method,
        "base": recipe.model.base,
        "base_sha256": base_sha256(base),
        **metrics,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return metrics


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


def _loop_config(section: Train, steps: int) -> LoopConfig:
    per_epoch = max(1, round(steps / section.num_train_epochs))
    return LoopConfig(
        learning_rate=section.learning_rate,
        lr_scheduler_type=section.lr_scheduler_type,
        warmup_steps=section.warmup_steps,
        max_grad_norm=section.max_grad_norm or float("inf"),
        micro_batch_tokens=section.batch_tokens,
        save_steps=section.save_steps,
        eval_steps=section.eval_steps or per_epoch,
        autocast=None if section.torch_dtype == "float32" else DTYPES[section.torch_dtype],
        resume=section.resume_from_checkpoint,
    )
