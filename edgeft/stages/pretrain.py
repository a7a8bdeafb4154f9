"""Stage `pretrain`: a base model from nothing, tokenizer included."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from edgeft.artifact import Artifact
from edgeft.console import Log
from edgeft.data.prepare import run_prepare
from edgeft.errors import RecipeError
from edgeft.recipe import Recipe
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig, train_loop
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.memory import keep_freed_memory
from edgeft.training.models import autocast_type
from edgeft.training.optim import MuonAdamW
from edgeft.training.pretraining import encode_documents, fresh_llama, read_documents, train_tokenizer


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Train tokenizer and weights on the prepared corpus; writes `model/` (Hugging Face folder, bfloat16)."""
    section = recipe.pretrain
    if section is None:
        raise RecipeError(f"{recipe.name}: no pretrain section")
    if section.num_threads:
        torch.set_num_threads(section.num_threads)
    keep_freed_memory()
    model_folder = out / "model"
    corpus = out / "checkpoint" / "corpus"
    if not (corpus / "done").exists():  # the tokenizer and the ids survive a kill, like the weights
        run_prepare(recipe, section.prepare, corpus, log)
        documents = read_documents(corpus / "train.jsonl")
        tokenizer = train_tokenizer(documents, section.tokenizer.vocab_size, section.model.max_position_embeddings)
        tokenizer.save_pretrained(model_folder)
        encode_documents(documents, tokenizer, section.max_length, log).save(corpus / "train.npz")
        for name in ("last", "validation"):
            others = read_documents(corpus / f"{name}.jsonl") if (corpus / f"{name}.jsonl").exists() else []
            encode_documents(others, tokenizer, section.max_length, log).save(corpus / f"{name}.npz")
        (corpus / "done").touch()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    tokens, last, validation = (TokenSet.load(corpus / f"{name}.npz") for name in ("train", "last", "validation"))
    model = fresh_llama(section.model, tokenizer, recipe.seed)
    n_parameters = sum(p.numel() for p in model.parameters())
    log.say(
        f"{n_parameters / 1e6:.2f} M parameters, {len(tokens):,} documents, {len(tokens.input_ids):,} tokens, "
        f"products in {section.torch_dtype}"
    )
    use_packed_attention(model)
    plan = plan_epochs(
        tokens.lengths, batch_tokens=section.batch_tokens, epochs=section.num_train_epochs, seed=recipe.seed
    )
    if len(last):
        final = plan_epochs(last.lengths, batch_tokens=section.batch_tokens, epochs=1, seed=recipe.seed)
        plan += [index + len(tokens) for index in final]
        tokens = tokens.joined(last)
    result = train_loop(
        model,
        MuonAdamW(model.named_parameters(), lr=section.learning_rate, weight_decay=section.weight_decay),
        tokens,
        plan,
        next_token_loss_sum,
        LoopConfig(
            learning_rate=section.learning_rate,
            lr_scheduler_type=section.lr_scheduler_type,
            warmup_steps=section.warmup_steps,
            max_grad_norm=section.max_grad_norm,
            micro_batch_tokens=section.batch_tokens,
            save=SaveRule(epoch_steps=max(1, round(len(plan) / section.num_train_epochs)), steps=section.save_steps),
            eval_steps=section.eval_steps,
            autocast=autocast_type(section.torch_dtype),
        ),
        out=out,
        log=log,
        validation=validation,
        label="pretrain",
    )
    model.bfloat16().save_pretrained(model_folder)
    metrics = {
        "parameters": float(n_parameters),
        "loss": result.last_loss,
        "eval_loss": result.eval_loss or 0.0,
        "tokens": float(result.tokens),
        "seconds": result.seconds,
    }
    (out / "summary.json").write_text(json.dumps(metrics, indent=2) + "\n", "utf-8")
    return metrics
