"""Which base an adapter is folded into: the one on disk, or the one QLoRA trained on."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import ModelError
from edgeft.sections import Merge, Train
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.loop import LoopConfig, mean_loss
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.merging import merge_adapter
from edgeft.training.models import load_model

Complete = Callable[[Path, dict[str, Any]], None]
BASES = ("16bit", "4bit")


def merge_into_chosen_base(
    train: Train, merge: Merge, base: Path, adapter: Path, out: Path, validation: TokenSet, log: Log, complete: Complete
) -> dict[str, Any]:
    """Write the merged model to `out`; returns `merge_base`, and where both were measured their validation losses.

    An adapter trained on 16 bits goes into those; one that started as LoftQ makes up for what NF4 lost and is
    right in NF4 only. `complete(folder, changes)` adds what a model folder needs besides weights; `changes` are
    those of config.json. `merge_base: auto` measures both on `validation`, in nats per token, and keeps the lower.

    Raises ModelError when there is nothing to measure on.
    """
    wanted = merge.merge_base
    if train.method != "qlora":
        wanted = "16bit"
    elif train.lora.init_lora_weights == "loftq":
        if wanted != "4bit":
            log.say("init_lora_weights: loftq makes up for what NF4 lost, so the adapter goes into the 4-bit base")
        wanted = "4bit"
    nf4 = {"16bit": None, "4bit": train.torch_dtype}
    if wanted != "auto":
        complete(out, merge_adapter(base, adapter, out, merge.dtype, nf4[wanted]))
        return {"merge_base": wanted}
    if len(validation) == 0:
        raise ModelError("merge.merge_base: auto measures on data.validation, which is empty; choose 16bit or 4bit")
    losses = {}
    for name in BASES:
        folder = out / name
        folder.mkdir()
        complete(folder, merge_adapter(base, adapter, folder, merge.dtype, nf4[name]))
        losses[name] = _validation_loss(folder, validation, train.batch_tokens)
    chosen = min(BASES, key=lambda name: losses[name])
    for path in (out / chosen).iterdir():
        path.rename(out / path.name)
    for name in BASES:
        shutil.rmtree(out / name)
    log.say(
        f"merge_base: validation loss {losses['16bit']:.4f} on the 16-bit base, {losses['4bit']:.4f} on the 4-bit "
        f"base; {chosen} is kept"
    )
    return {"merge_base": chosen} | {f"eval_loss_{name}": losses[name] for name in BASES}


def _validation_loss(folder: Path, validation: TokenSet, batch_tokens: int) -> float:
    """Nats per token of the model in `folder`, computed in float32 from the weights as they are stored."""
    model = load_model(folder)
    use_packed_attention(model)
    config = LoopConfig(
        learning_rate=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        max_grad_norm=1.0,
        micro_batch_tokens=batch_tokens,
    )
    return mean_loss(model, validation, next_token_loss_sum, config)
