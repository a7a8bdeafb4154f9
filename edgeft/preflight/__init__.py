"""What a run will cost, before it is run: disk, memory and minutes of each stage.

Counted from the shapes in the base's safetensors headers and config.json, and from the tokens of the prepared data
(or guessed from the first lines of the data files, when they are not prepared yet). The training stage is counted in
`training`, the speed of this machine is from `machine`. benchmarks/preflight.py holds predictions against runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from edgeft.machine.cores import physical_cores
from edgeft.pipeline import State
from edgeft.preflight.machine import REFERENCE, Speed, n_threads, speed_of_this_machine
from edgeft.preflight.shape import Shape, read_shape
from edgeft.preflight.student import distilling_bytes, distilling_seconds, final_shape
from edgeft.preflight.tokens import BYTES_PER_TOKEN, Tokens, count_tokens, guess_from_inputs
from edgeft.preflight.training import DTYPE_BYTES, generation_seconds, training_cost
from edgeft.recipe import Recipe
from edgeft.torch_dtype import settled
from edgeft.training_memory import PROCESS_BYTES, ModelShape, predict_peak

__all__ = [
    "BITS_PER_WEIGHT",
    "COSTS",
    "Estimate",
    "Shape",
    "Speed",
    "Tokens",
    "estimate",
    "estimate_training",
    "read_shape",
    "speed_of_this_machine",
]

# Bits per weight of llama.cpp's quantizations (block scales included; mixes as on a 7B Llama).
BITS_PER_WEIGHT = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q5_K_S": 5.54,
    "Q5_1": 6.0, "Q5_0": 5.5, "Q4_K_M": 4.85, "Q4_K_S": 4.58, "Q4_1": 5.0, "Q4_0": 4.5, "IQ4_NL": 4.5,
    "IQ4_XS": 4.25, "Q3_K_L": 4.27, "Q3_K_M": 3.91, "Q3_K_S": 3.5, "IQ3_M": 3.66, "IQ3_S": 3.44, "IQ3_XS": 3.3,
    "IQ3_XXS": 3.06, "Q2_K": 3.0, "Q2_K_S": 2.75, "IQ2_M": 2.7, "IQ2_S": 2.5, "IQ2_XS": 2.31, "IQ2_XXS": 2.06,
    "IQ1_M": 1.75, "IQ1_S": 1.56, "TQ2_0": 2.06, "TQ1_0": 1.69,
}  # fmt: skip
OVERHEAD_SECONDS = {"parity": 1.5, "baseline": 6.0, "bench": 10.0}  # imports, processes and loads, of any model
IMPORT_SECONDS = 6.0  # torch, transformers and peft, by the first stage that needs them
TORCH_STAGES = ("data", "train", "merge", "distill", "recover", "parity", "baseline")
ENCODER_BYTES = {"fp32": 4, "fp16": 2, "int8": 1, "int8_static": 1}
CALIBRATION_PASSES = {"int8": 1, "int8_static": 3}
OF_FINAL_MODEL = ("recover", "export", "parity", "bench")
TOKENIZED_PER_S = 1e5
RUNTIME_BYTES = 50e6
PRETRAIN_SHARE = 0.85  # of the speed of fine-tuning: Muon, and attention over whole documents


@dataclass(frozen=True)
class Estimate:
    """Cost of one stage; None where it cannot be known before the data is prepared. Of `disk_bytes`,
    `working_bytes` go again when the stage is done."""

    disk_bytes: float | None
    ram_bytes: float | None
    minutes: float | None
    working_bytes: float = 0.0


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    shape: Shape
    tokens: Tokens | None
    speed: Speed

    @property
    def train_rate(self) -> float:
        """FLOP/s of torch in float32, with its default threads."""
        return self.speed.train_flops_per_s(self.shape.hidden_size, "float32", n_threads(None))


def estimate(recipe: Recipe, states: list[State], speed: Speed = REFERENCE) -> dict[str, Estimate]:
    """Cost of each stage that is not up to date, on a machine of this `speed`.

    Raises ModelError when the base model's files cannot be understood, RecipeError for a memory budget that is
    no size.
    """
    recipe, _ = settled(recipe)
    todo = {state.planned.stage: state.planned.step.module for state in states if state.artifact is None}
    if recipe.pretrain is not None:
        return {stage: _with_imports(_pretrain(recipe, speed), speed) for stage in todo}
    job = _Job(recipe, read_shape(recipe.base_folder()), count_tokens(recipe, states), speed)
    exported = replace(job, shape=final_shape(recipe, job.shape))
    costs = {
        stage: COSTS[module or stage](exported if stage in OF_FINAL_MODEL else job) for stage, module in todo.items()
    }
    for stage in costs.keys() & OVERHEAD_SECONDS:
        costs[stage] = _longer(costs[stage], speed.seconds(OVERHEAD_SECONDS[stage]))
    first = next((stage for stage in todo if stage in TORCH_STAGES), None)
    return costs if first is None else costs | {first: _with_imports(costs[first], speed)}


def estimate_training(recipe: Recipe, tokens: Tokens, speed: Speed = REFERENCE) -> Estimate:
    """Cost of the training stage for data already counted. Raises like `estimate`."""
    recipe, _ = settled(recipe)
    return _train(_Job(recipe, read_shape(recipe.base_folder()), tokens, speed))


def _with_imports(cost: Estimate, speed: Speed) -> Estimate:
    return _longer(cost, speed.seconds(IMPORT_SECONDS))


def _longer(cost: Estimate, seconds: float) -> Estimate:
    return cost if cost.minutes is None else replace(cost, minutes=cost.minutes + _minutes(seconds))


def _minutes(seconds: float) -> float:
    return seconds / 60


def _data(job: _Job) -> Estimate:
    if job.tokens is None:
        return Estimate(None, PROCESS_BYTES, None)
    total = job.tokens.train + job.tokens.validation + job.tokens.per_test_example * job.tokens.test_examples
    total += job.tokens.text + job.tokens.pairs + job.tokens.pairs_validation
    ids = 5  # bytes of an id and its mask
    return Estimate(
        total * (BYTES_PER_TOKEN + ids), PROCESS_BYTES, _minutes(job.speed.seconds(total / TOKENIZED_PER_S))
    )


def _train(job: _Job) -> Estimate:
    cost = training_cost(job.recipe, job.shape, job.tokens, job.speed)
    minutes = None if cost.seconds is None else _minutes(cost.seconds)
    return Estimate(cost.kept_bytes + cost.working_bytes, cost.peak_bytes, minutes, cost.working_bytes)


def _merge(job: _Job) -> Estimate:
    size = job.shape.n_params * DTYPE_BYTES[job.recipe.merge.dtype]
    return Estimate(size, PROCESS_BYTES + 2 * job.shape.n_params * 4, _minutes(size / 2e8))


def _distill(job: _Job) -> Estimate:
    if job.tokens is None:
        return Estimate(None, None, None)
    disk, ram = distilling_bytes(job.recipe, job.shape, job.tokens)
    seconds = distilling_seconds(job.recipe, job.shape, job.tokens, job.speed)
    working = 3 * 12 * final_shape(job.recipe, job.shape).n_params  # two checkpoints and the one being written
    return Estimate(disk + working, ram, _minutes(seconds), working)


def _recover(job: _Job) -> Estimate:
    """Masters, gradients and Adam's two moments in float32, beside the rounded weights and the unrounded model."""
    section: Any = job.recipe.recover
    n_params = job.shape.n_params
    logits = 2 * 4 * section.micro_batch_tokens * job.shape.vocab_size
    disk, ram, working = 4 * n_params, PROCESS_BYTES + 6 * 4 * n_params + logits, 3 * 12 * n_params
    if job.tokens is None:
        return Estimate(disk + working, ram, None, working)
    flops = (6 + 2) * n_params * job.tokens.train * section.num_train_epochs
    rate = job.speed.train_flops_per_s(job.shape.hidden_size, section.torch_dtype, n_threads(section.num_threads))
    return Estimate(disk + working, ram, _minutes(flops / rate), working)


def _export(job: _Job) -> Estimate:
    size = sum(_file_bytes(job, entry.ftype) for entry in job.recipe.export.gguf)
    return Estimate(size, RUNTIME_BYTES + 4 * job.shape.n_params, _minutes(size / 5e7))


def _parity(job: _Job) -> Estimate:
    section, shape = job.recipe.parity, job.shape
    forms = 2 + len(job.recipe.export.gguf)
    length = job.tokens.per_test_example if job.tokens else 128.0
    generated = section.prompts * section.n_gen * forms
    seconds = generated * job.speed.decode_seconds(shape.n_params * 4)
    seconds += section.prompts * length * forms * 2 * shape.n_params / job.speed.prompt_flops_per_s(1)
    ram = PROCESS_BYTES + 3 * 4 * shape.n_params + 4 * length * shape.vocab_size * forms
    return Estimate(1e5, ram, _minutes(seconds))


def _baseline(job: _Job) -> Estimate:
    section, shape = job.recipe.bench, job.shape
    ram = PROCESS_BYTES + 2 * 4 * shape.n_params + 200e6
    if not section.baselines:
        return Estimate(1e3, PROCESS_BYTES, 0.0)
    if job.tokens is None:
        return Estimate(1e6, ram, None)
    tested = min(section.limit or math.inf, job.tokens.test_examples)
    few = min(section.baseline_limit, tested)
    answer = min(section.max_new_tokens, job.tokens.answer)
    seconds = generation_seconds(shape, tested, answer, job.train_rate, job.speed)
    # An untrained base does not stop by itself.
    rounds = 2 if section.few_shot else 1
    seconds += rounds * generation_seconds(shape, few, section.max_new_tokens / 2, job.train_rate, job.speed)
    read = (tested + few * (1 + section.few_shot)) * job.tokens.per_test_example
    return Estimate(1e5 + 400 * tested, ram, _minutes(seconds + read * 2 * shape.n_params / job.train_rate))


def _bench(job: _Job) -> Estimate:
    section, shape, export = job.recipe.bench, job.shape, job.recipe.export
    measured = [entry.ftype for entry in export.gguf] if section.files == "all" else [export.shipped]
    sizes = [_file_bytes(job, ftype) for ftype in measured]
    size = max(sizes)
    ram = RUNTIME_BYTES + size + section.n_ctx * shape.hidden_size * shape.num_hidden_layers * 4
    if job.tokens is None:
        return Estimate(1e6, ram, None)
    latency = section.latency
    tested = min(section.limit or math.inf, job.tokens.test_examples)
    timed = latency.prompts * (latency.repetitions + latency.warmup)
    generated = tested * min(section.max_new_tokens, job.tokens.answer) + timed * latency.n_gen
    read = (tested + timed) * job.tokens.per_test_example
    rate = job.speed.prompt_flops_per_s(section.n_threads or physical_cores())
    seconds = sum(generated * job.speed.decode_seconds(each) + read * 2 * shape.n_params / rate for each in sizes)
    return Estimate((7e4 + 200 * tested) * len(sizes), ram, _minutes(seconds))


def _encoder_export(job: _Job) -> Estimate:
    """Every file is held whole; int8 runs the calibration texts, each for scalings and again for ranges."""
    n_params = job.shape.n_params
    sizes = [ENCODER_BYTES[entry.dtype] * n_params for entry in job.recipe.export.encoder]
    passes = sum(CALIBRATION_PASSES.get(entry.dtype, 0) for entry in job.recipe.export.encoder)
    cost = _texts_read(job, 256 * passes)
    return replace(cost, disk_bytes=sum(sizes), ram_bytes=PROCESS_BYTES + 3 * 4 * n_params)


def _encoder_parity(job: _Job) -> Estimate:
    return _texts_read(job, job.recipe.parity.prompts * (1 + len(job.recipe.export.encoder)))


def _encoder_baseline(job: _Job) -> Estimate:
    return _texts_read(job, job.recipe.bench.limit)


def _encoder_bench(job: _Job) -> Estimate:
    section, latency = job.recipe.bench, job.recipe.bench.latency
    n_files = len(job.recipe.export.encoder) if section.files == "all" else 1
    timed = (latency.prompts + 32) * (latency.repetitions + latency.warmup)
    tested = _texts_read(job, section.limit)
    speed = _texts_read(job, timed)
    if tested.minutes is None or speed.minutes is None:
        return tested
    return replace(tested, minutes=n_files * (tested.minutes + speed.minutes))


def _texts_read(job: _Job, n_texts: int | None) -> Estimate:
    """`n_texts` (None: the test set) through an encoder once."""
    ram = PROCESS_BYTES + 2 * 4 * job.shape.n_params
    if job.tokens is None:
        return Estimate(1e5, ram, None)
    texts = job.tokens.test_examples if n_texts is None else n_texts
    read = texts * job.tokens.per_test_example
    return Estimate(1e5 + 400 * texts, ram, _minutes(read * 2 * job.shape.n_params / job.speed.prompt_flops_per_s(1)))


def _file_bytes(job: _Job, ftype: str) -> float:
    """Of a mix, what it is planned to fit by default."""
    ftype = "Q4_K_M" if ftype == "auto" else ftype
    return job.shape.n_params * BITS_PER_WEIGHT[ftype] / 8


def _small(job: _Job) -> Estimate:
    return Estimate(1e5, RUNTIME_BYTES, _minutes(1.0))


def _pretrain(recipe: Recipe, speed: Speed) -> Estimate:
    """Of a pre-training recipe: weights from its shape, tokens guessed from its script's raw data."""
    section: Any = recipe.pretrain
    model = section.model
    width = model.hidden_size // model.num_attention_heads
    layer = model.hidden_size * (
        2 * model.hidden_size + 2 * width * model.num_key_value_heads + 3 * model.intermediate_size
    )
    n_params = layer * model.num_hidden_layers + section.tokenizer.vocab_size * model.hidden_size
    shape = ModelShape(
        hidden=model.hidden_size,
        inner=model.intermediate_size,
        layers=model.num_hidden_layers,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        head_width=width,
        weight_bytes=0,
        trained=n_params,
        element_bytes=DTYPE_BYTES[section.torch_dtype],
        fused=False,
    )
    ram = predict_peak(shape, section.batch_tokens, 0)
    disk, working = 4 * n_params, 3 * 12 * n_params
    guessed = guess_from_inputs([recipe.resolve(path) for path in section.prepare.inputs])
    if guessed is None:
        return Estimate(disk + working, ram, None, working)
    flops = 6 * n_params * guessed.train * section.num_train_epochs
    rate = speed.train_flops_per_s(model.hidden_size, section.torch_dtype, n_threads(section.num_threads))
    return Estimate(disk + working, ram, _minutes(flops / (rate * PRETRAIN_SHARE)), working)


COSTS: dict[str, Callable[[_Job], Estimate]] = {
    "data": _data,
    "train": _train,
    "merge": _merge,
    "distill": _distill,
    "recover": _recover,
    "export": _export,
    "parity": _parity,
    "baseline": _baseline,
    "bench": _bench,
    "encoder_export": _encoder_export,
    "encoder_parity": _encoder_parity,
    "encoder_baseline": _encoder_baseline,
    "encoder_bench": _encoder_bench,
    "gate": _small,
    "report": _small,
}
