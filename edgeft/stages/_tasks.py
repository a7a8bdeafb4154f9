"""What each training objective learns from: its examples, its loss, and what is watched meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from edgeft.artifact import Artifact
from edgeft.bench.metrics import score_texts
from edgeft.console import Log
from edgeft.sections import Phase, Train
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import Examples, TokenSet
from edgeft.training.distributed import Workers
from edgeft.training.loop import LossSum, Watch
from edgeft.training.losses import next_token_loss_sum
from edgeft.training.models import base_sha256, load_tokenizer
from edgeft.training.pair_attention import use_pair_attention
from edgeft.training.pairs import PairSet
from edgeft.training.preference import dpo_loss_sum, orpo_loss_sum, preference_metrics, reference_log_probs
from edgeft.training.watching import TaskEvaluation

MAX_ANSWER_TOKENS = 512  # of a watched answer; it ends much earlier, at twice the length of the one wanted


@dataclass(frozen=True)
class Task:
    """One training: `examples` under `loss_sum`, `validation` watched by loss and by `watch`."""

    examples: Examples
    validation: Examples | None
    loss_sum: LossSum
    watch: Sequence[Watch] = ()


@dataclass(frozen=True)
class Setting:
    """What a task is made in: the training section and the phase, the base's folder, the prepared data, the model
    (`whole`, and as it trains), where the phase keeps its files, the type of the products (None: that of the
    weights), and who trains with it."""

    section: Train
    phase: Phase
    base: Path
    data: Artifact
    whole: PreTrainedModel
    trained: Any
    folder: Path
    autocast: torch.dtype | None
    log: Log
    workers: Workers


def make_task(setting: Setting) -> Task:
    """The task of a phase; the model then attends as its examples need it."""
    return TASKS[setting.phase.objective](setting)


def _sft(setting: Setting) -> Task:
    use_packed_attention(setting.whole)
    validation = TokenSet.load(setting.data.file("tokens-validation.npz"))
    section = setting.section
    watch: list[Watch] = []
    if section.eval_examples and len(validation):
        tokenizer = load_tokenizer(setting.data.path / "tokenizer")

        def score(predictions: Sequence[str], references: Sequence[str]) -> Mapping[str, float]:
            return {s.metric: s.value for s in score_texts(section.eval_metrics, predictions, references)}

        watch.append(
            TaskEvaluation.of(
                validation, tokenizer, score, examples=section.eval_examples, max_new_tokens=MAX_ANSWER_TOKENS
            )
        )
    tokens = TokenSet.load(setting.data.file("tokens-train.npz"))
    return Task(tokens, validation if len(validation) else None, next_token_loss_sum, watch)


def _text(setting: Setting) -> Task:
    use_packed_attention(setting.whole)
    return Task(TokenSet.load(setting.data.file("tokens-text.npz")), None, next_token_loss_sum)


def _orpo(setting: Setting) -> Task:
    use_pair_attention(setting.whole)
    pairs, held_out = _pairs(setting.data)
    return Task(pairs, held_out, orpo_loss_sum(setting.phase.beta), [_preferences(setting, held_out)])


def _dpo(setting: Setting) -> Task:
    use_pair_attention(setting.whole)
    key = base_sha256(setting.base)
    if not setting.workers.writes:
        setting.workers.wait()  # the first worker computes the reference, the others read it
    pairs, held_out = (
        part.with_reference(
            reference_log_probs(
                setting.trained,
                part,
                setting.folder / "checkpoint",
                micro_batch_tokens=setting.section.micro_batch_tokens,
                name=f"reference-{name}.npz",
                key=key,
                autocast=setting.autocast,
                log=setting.log,
            )
        )
        for name, part in zip(("train", "validation"), _pairs(setting.data), strict=True)
    )
    if setting.workers.writes:
        setting.workers.wait()
    return Task(pairs, held_out, dpo_loss_sum(setting.phase.beta), [_preferences(setting, held_out)])


def _pairs(data: Artifact) -> tuple[PairSet, PairSet]:
    return PairSet.load(data.file("pairs-train.npz")), PairSet.load(data.file("pairs-validation.npz"))


def _preferences(setting: Setting, held_out: PairSet) -> Watch:
    """Accuracy and margin on the held-out pairs."""
    objective, beta = setting.phase.objective, setting.phase.beta

    def measure(model: Any) -> Mapping[str, float]:
        measured = preference_metrics(
            model,
            held_out,
            "dpo" if objective == "dpo" else "orpo",
            beta,
            micro_batch_tokens=setting.section.micro_batch_tokens,
            autocast=setting.autocast,
        )
        return {name: measured[name] for name in ("preference_accuracy", "reward_margin")}

    return measure


TASKS: dict[str, Callable[[Setting], Task]] = {"sft": _sft, "text": _text, "dpo": _dpo, "orpo": _orpo}
