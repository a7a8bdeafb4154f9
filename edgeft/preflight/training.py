"""What the training stage will cost: memory by `edgeft.training_memory`, disk by what it writes, time by its FLOP.

FLOP of a token: 2 a weight forward, 2 for the gradient of its inputs, 2 for that of the weight itself where it trains
(Kaplan et al. 2020, section 2.1); a recomputed layer runs forward once more; the head over the vocabulary runs only
where a token carries loss. Attention between tokens is left out: below 1,000 tokens an example it is a few percent.
Time is FLOP by `machine.Speed.train_flops_per_s`, plus what evaluations and checkpoints take.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from edgeft.preflight.machine import REFERENCE, Speed, n_threads
from edgeft.preflight.shape import Shape
from edgeft.preflight.tokens import Tokens
from edgeft.recipe import Recipe
from edgeft.sections import Lora, Phase
from edgeft.training.automatic import choose_hyperparameters
from edgeft.training_memory import (
    LOGIT_BYTES,
    ModelShape,
    choose_checkpointing,
    free_memory_budget,
    parse_memory,
    predict_peak,
)

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.516  # a weight, its share of the doubly quantized scales included (Dettmers et al. 2023)
STATE_BYTES = 12  # a trained number in a checkpoint: itself and two moments
CHECKPOINT_BYTES_PER_S = 1e9
SAVE_SECONDS = 60  # of training between checkpoints, whose writing is not counted: it is far below the rest
LOG_BYTES = 155  # a row of log.jsonl
DECODE_LAYER_SECONDS = 1e-3  # torch, a layer, one token for each of a batch
DECODE_BATCH = 64
ENCODER_EXTRA = 1.3  # of a decoder's time, beside it: many small batches, a dense gradient of the embeddings (MiniLM)
GUESSED_EXAMPLE_TOKENS = 40
CANARY_TOKENS = 2000  # general English, measured before and after


@dataclass(frozen=True)
class TrainingCost:
    """`peak_bytes` of memory with `recomputed` layers; `kept_bytes` on disk when it is done, `working_bytes` more
    while it runs; `seconds` is None for data that nobody has counted."""

    peak_bytes: float
    recomputed: int
    kept_bytes: float
    working_bytes: float
    seconds: float | None


def training_cost(recipe: Recipe, shape: Shape, tokens: Tokens | None, speed: Speed = REFERENCE) -> TrainingCost:
    """The cost of `recipe.train`, every phase of it. Raises RecipeError for a budget that is no size."""
    recipe = _chosen(recipe, shape, tokens)
    trained = trained_parameters(recipe, shape)
    peak, recomputed = _memory(recipe, shape, trained)
    counted = tokens
    phases = [_phase(recipe, shape, phase, counted, recomputed, speed) for phase in recipe.train.phases()]
    whole = recipe.train.method == "full" or _classifies(recipe)
    kept = 4 * shape.n_params if whole else 4 * trained
    steps = sum(phase.steps for phase in phases)
    saves = sum(phase.saves for phase in phases)
    seconds = None
    if counted is not None:
        canary = 0 if _classifies(recipe) else 4 * CANARY_TOKENS * (shape.linear + shape.head)
        seconds = (sum(phase.flops for phase in phases) + canary) / _rate(recipe, shape, speed)
        seconds += saves * STATE_BYTES * trained / CHECKPOINT_BYTES_PER_S + sum(phase.seconds for phase in phases)
    return TrainingCost(
        peak, recomputed, kept + LOG_BYTES * steps, _working_bytes(recipe, trained, saves, seconds), seconds
    )


def _chosen(recipe: Recipe, shape: Shape, tokens: Tokens | None) -> Recipe:
    """The recipe with what `hyperparameters: auto` will choose: exactly so when the data is prepared, else by its
    guessed tokens."""
    if recipe.train.hyperparameters != "auto" or tokens is None:
        return recipe
    given, of_each = tokens.train_examples, 1.0
    if given and tokens.given:
        of_each = tokens.train / tokens.given  # variants are examples too
    choice = choose_hyperparameters(
        recipe.train,
        n_examples=int(given * of_each if given else tokens.train / GUESSED_EXAMPLE_TOKENS),
        n_tokens=int((tokens.given or tokens.train) * of_each),
        longest=int(tokens.longest),
        hidden_size=shape.hidden_size,
        n_validation=int(tokens.validation_examples),
    )
    return recipe.model_copy(update={"train": choice.section})


def trained_parameters(recipe: Recipe, shape: Shape) -> int:
    """Numbers that train: all, or r · (inputs + outputs) of each adapted matrix, and `modules_to_save` whole."""
    section = recipe.train
    if section.method == "full":
        return shape.n_params
    lora = section.lora
    adapted = [sides for name, sides in shape.matrices.items() if _adapted(name, lora)]
    whole = [count for name, count in shape.tensors.items() if set(name.split(".")) & set(lora.modules_to_save)]
    magnitudes = sum(outputs for outputs, _ in adapted) if lora.use_dora else 0
    return lora.r * sum(sum(sides) for sides in adapted) + magnitudes + sum(whole)


def _adapted(name: str, lora: Lora) -> bool:
    if isinstance(lora.target_modules, str):
        return True
    return any(name == target or name.endswith(f".{target}") for target in lora.target_modules)


def _classifies(recipe: Recipe) -> bool:
    return recipe.train.phases()[0].objective == "classification"


def _memory(recipe: Recipe, shape: Shape, trained: int) -> tuple[float, int]:
    """(peak bytes, recomputed layers), decided as the training stage decides it."""
    section = recipe.train
    full, classifies = section.method == "full", _classifies(recipe)
    model = ModelShape(
        hidden=shape.hidden_size,
        inner=shape.inner or 4 * shape.hidden_size,
        layers=shape.num_hidden_layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_width=shape.head_width or shape.hidden_size // shape.heads,
        weight_bytes=0 if full else round(_frozen_bytes(recipe, shape)),
        trained=trained,
        element_bytes=DTYPE_BYTES[section.torch_dtype],
        rank=0 if full else section.lora.r,
        fused=section.fused_lora and not full and not classifies and not section.lora.use_dora,
    )
    micro = min(section.micro_batch_tokens, max(p.batch_tokens for p in section.phases()))
    if classifies:  # it recomputes nothing and has no head over the vocabulary
        return predict_peak(model, micro, 0) - 3 * LOGIT_BYTES, 0
    if section.gradient_checkpointing == "auto":
        budget = parse_memory(section.memory_budget) if section.memory_budget else free_memory_budget()
        choice = choose_checkpointing(model, micro, budget)
        return choice.peak_bytes, choice.layers
    layers = model.layers - 1 if section.gradient_checkpointing == "always" else 0
    return predict_peak(model, micro, layers), layers


def _frozen_bytes(recipe: Recipe, shape: Shape) -> float:
    """The base beside its adapters; NF4 takes the linear layers, the rest stays in the compute type."""
    each = DTYPE_BYTES[recipe.train.torch_dtype]
    if recipe.train.method == "qlora":
        return shape.linear * NF4_BYTES + (shape.n_params - shape.linear) * each
    return shape.n_params * each


def _working_bytes(recipe: Recipe, trained: int, saves: int, seconds: float | None) -> float:
    """What checkpoints hold at once: the last state, the one before and one being written; the best states that
    these two name and a new one; what each phase before the last has left."""
    phases = len(recipe.train.phases())
    states = 3 if seconds is None else min(3, saves + int(seconds / SAVE_SECONDS))
    best = 3 if recipe.train.metric_for_best_model else 0
    before = (min(2, states) * STATE_BYTES + 4) * (phases - 1)
    return trained * (states * STATE_BYTES + 4 * best + before)


@dataclass(frozen=True)
class _Phase:
    flops: float = 0.0
    steps: float = 0.0
    seconds: float = 0.0
    saves: int = 0


def _phase(recipe: Recipe, shape: Shape, phase: Phase, tokens: Tokens | None, recomputed: int, speed: Speed) -> _Phase:
    """One training: its epochs, its evaluations and, for dpo, the reference's pass over all pairs."""
    if tokens is None:
        return _Phase()
    section, data = recipe.train, _of_objective(tokens, phase.objective)
    epochs = phase.num_train_epochs
    steps = epochs * data.train / phase.batch_tokens
    forward = 2 * (shape.linear + data.loss_share * (shape.head if phase.objective != "classification" else 0))
    passes = 2 if phase.objective in ("dpo", "orpo") else 1  # the loss, and the share of pairs in the right order
    evaluations = _evaluations(section.eval_steps, steps, epochs)
    flops = epochs * data.train * _train_flops(recipe, shape, data.loss_share, recomputed)
    flops += evaluations * passes * data.validation * forward
    if phase.objective == "dpo":
        flops += (data.train + data.validation) * forward
    answered = min(section.eval_examples, tokens.validation_examples) if phase.objective == "sft" else 0
    seconds = evaluations * generation_seconds(shape, answered, tokens.answer, _rate(recipe, shape, speed), speed)
    saves = math.ceil(epochs) + (int(steps / section.save_steps) if section.save_steps else 0)
    return _Phase(flops, steps, seconds, saves)


def _of_objective(tokens: Tokens, objective: Literal["sft", "text", "dpo", "orpo", "classification"]) -> Tokens:
    """What a phase trains on and is watched on."""
    if objective == "text":
        return replace(tokens, train=tokens.text, validation=0.0, loss_share=1.0)
    if objective in ("dpo", "orpo"):
        return replace(tokens, train=tokens.pairs, validation=tokens.pairs_validation)
    return tokens


def _evaluations(every: int | None, steps: float, epochs: float) -> float:
    """Times the validation set is measured: each `every` steps (null: each epoch), and at the end."""
    between = every or max(1, round(steps / epochs))
    return max(1, -(-int(steps) // between))


def _train_flops(recipe: Recipe, shape: Shape, loss_share: float, recomputed: int) -> float:
    """FLOP of one training token."""
    again = 2 * shape.linear * recomputed / max(1, shape.num_hidden_layers)
    head = 0 if _classifies(recipe) else loss_share * shape.head
    if recipe.train.method == "full":
        return 6 * (shape.linear + head) + again
    return 4 * (shape.linear + head) + 6 * trained_parameters(recipe, shape) + again


def generation_seconds(shape: Shape, examples: float, answer: float, flops_per_s: float, speed: Speed) -> float:
    """Seconds in which torch answers `examples` prompts, DECODE_BATCH at a time, the longest answer of a batch
    twice the mean."""
    batches = -(-int(examples) // DECODE_BATCH)
    work = examples * answer * 2 * (shape.linear + shape.head) / flops_per_s
    return speed.seconds(batches * 2 * answer * shape.num_hidden_layers * DECODE_LAYER_SECONDS) + work


def _rate(recipe: Recipe, shape: Shape, speed: Speed) -> float:
    section = recipe.train
    how = (shape.hidden_size, section.torch_dtype, n_threads(section.num_threads))
    rate = speed.train_flops_per_s(*how)
    if not _classifies(recipe):
        return rate
    return 1 / (1 / rate + ENCODER_EXTRA * speed.seconds(1 / REFERENCE.train_flops_per_s(*how)))
