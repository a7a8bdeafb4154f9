"""What a run will cost, before it is run: disk, memory and minutes of each stage.

Counted from the shapes in the base's safetensors headers and config.json, and from the tokens of the prepared
data (or guessed from the first lines of the data files, when they are not prepared yet). Arithmetic is counted with the
usual 2 FLOP per weight and token forward, 4 backward (Kaplan et al. 2020, section 2.1). The speeds are those
of one core of a current laptop CPU, so the minutes are an order of magnitude, not a promise.
"""

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from edgeft.errors import ModelError
from edgeft.pipeline import State
from edgeft.recipe import Recipe

# Bits per weight of llama.cpp's quantizations (block scales included; mixes as on a 7B Llama).
BITS_PER_WEIGHT = {
    "F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q5_K_S": 5.54,
    "Q5_1": 6.0, "Q5_0": 5.5, "Q4_K_M": 4.85, "Q4_K_S": 4.58, "Q4_1": 5.0, "Q4_0": 4.5, "IQ4_NL": 4.5,
    "IQ4_XS": 4.25, "Q3_K_L": 4.27, "Q3_K_M": 3.91, "Q3_K_S": 3.5, "Q2_K": 3.0,
}  # fmt: skip
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CHARACTERS_PER_TOKEN = 3.5  # of a message; its role and marks are TOKENS_PER_MESSAGE
TOKENS_PER_MESSAGE = 5
BYTES_PER_TOKEN = 6  # of raw data a script will turn into chat JSONL, and of what the data stage writes
SAMPLED_LINES = 200
TRAIN_FLOPS_PER_S = 5e10  # one core, torch, wide matrices; half of it at a width of HALF_SPEED_WIDTH
HALF_SPEED_WIDTH = 128
DECODE_BYTES_PER_S = 4e9  # weights read per second when one token follows another
PROMPT_FLOPS_PER_S = 4e10  # one core, llama.cpp
IMPORT_SECONDS = 12.0  # torch, transformers and peft
TORCH_BYTES = 450e6
RUNTIME_BYTES = 80e6
SAVED_PER_TOKEN_AND_LAYER = 16  # activations kept for the backward pass, in widths of the model


@dataclass(frozen=True)
class Estimate:
    """Cost of one stage; None where it cannot be known before the data is prepared."""

    disk_bytes: float | None
    ram_bytes: float | None
    minutes: float | None


@dataclass(frozen=True)
class Shape:
    """The model: `n_params` weights; widths and counts from config.json."""

    n_params: int
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int


@dataclass(frozen=True)
class Tokens:
    """The data: tokens of the training split and of a mean test prompt, and how many test examples."""

    train: float
    test_examples: float
    per_test_example: float
    validation: float = 0.0


@dataclass(frozen=True)
class _Job:
    recipe: Recipe
    shape: Shape
    tokens: Tokens | None


def estimate(recipe: Recipe, states: list[State]) -> dict[str, Estimate]:
    """Cost of each stage that is not up to date.

    Raises ModelError when the base model's files cannot be understood.
    """
    if recipe.pretrain is not None:
        return {state.planned.stage: _pretrain(recipe) for state in states if state.artifact is None}
    job = _Job(recipe, read_shape(recipe.base_folder()), _count_tokens(recipe, states))
    todo = [state.planned.stage for state in states if state.artifact is None]
    return {stage: COSTS[stage](job) for stage in todo}


def estimate_training(recipe: Recipe, tokens: Tokens) -> Estimate:
    """Cost of the training stage for data already counted. Raises ModelError like `estimate`."""
    return _train(_Job(recipe, read_shape(recipe.base_folder()), tokens))


def read_shape(folder: Path) -> Shape:
    """The shape of the model in a Hugging Face folder. Raises ModelError when it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        counts = [_count_params(path) for path in sorted(folder.glob("*.safetensors"))]
        hidden = config.get("hidden_size") or config["n_embd"]
        layers = config.get("num_hidden_layers") or config["n_layer"]
        if not counts:
            raise ModelError(f"{folder}: no *.safetensors weights")
        return Shape(sum(counts), int(hidden), int(layers), int(config["vocab_size"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: cannot read the shape of the model ({error!r}); is it whole?") from None


def _count_params(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000)))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _count_tokens(recipe: Recipe, states: list[State]) -> Tokens | None:
    """Exact from the prepared data, else guessed from files; None where a script makes data from nothing."""
    prepared = next((s.artifact for s in states if s.planned.stage == "data" and s.artifact), None)
    if prepared is not None:
        count = prepared.metrics
        per_example = count["test_tokens"] / max(1.0, count["test_examples"])
        return Tokens(count["train_tokens"], count["test_examples"], per_example, count["validation_tokens"])
    if recipe.data.prepare is not None:
        return _guess_from_inputs([recipe.resolve(path) for path in recipe.data.prepare.inputs])
    guessed = {name: _guess_from_lines(recipe.resolve(path)) for name, path in recipe.data.files().items()}
    test_lines, test = guessed.pop("test")
    validation_lines, validation = guessed.pop("validation", (0, 0.0))
    train = sum(lines * tokens for lines, tokens in guessed.values())
    return Tokens(train, test_lines, test, validation_lines * validation)


def _guess_from_inputs(paths: list[Path]) -> Tokens | None:
    """A script's raw data, taken as a tenth test and a twentieth validation in examples of 40 tokens."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    total = sum(file.stat().st_size for file in files if file.is_file() and file.suffix != ".py") / BYTES_PER_TOKEN
    return Tokens(0.85 * total, 0.1 * total / 40, 40.0, 0.05 * total) if total else None


def _guess_from_lines(path: Path) -> tuple[float, float]:
    """(lines, tokens a line) of chat JSONL, from its first lines and its size. A bad line counts nothing."""
    tokens, n_bytes, n_lines = 0.0, 0, 0
    with path.open("rb") as file:
        for line in islice(file, SAMPLED_LINES):
            n_bytes, n_lines = n_bytes + len(line), n_lines + 1
            with suppress(ValueError, KeyError, TypeError):
                messages = json.loads(line)["messages"]
                characters = sum(len(message["content"]) for message in messages)
                tokens += characters / CHARACTERS_PER_TOKEN + TOKENS_PER_MESSAGE * len(messages)
    return path.stat().st_size * n_lines / max(1, n_bytes), tokens / max(1, n_lines)


def _train_flops_per_s(width: int) -> float:
    return TRAIN_FLOPS_PER_S * width / (width + HALF_SPEED_WIDTH)


def _threads(wanted: int | None) -> int:
    return wanted or max(1, (os.cpu_count() or 1) // 2)


def _minutes(seconds: float) -> float:
    return seconds / 60


def _data(job: _Job) -> Estimate:
    if job.tokens is None:
        return Estimate(None, TORCH_BYTES, None)
    total = job.tokens.train + job.tokens.validation + job.tokens.per_test_example * job.tokens.test_examples
    ids = 5  # bytes of an id and its mask
    return Estimate(total * (BYTES_PER_TOKEN + ids), TORCH_BYTES, _minutes(IMPORT_SECONDS + total / 5e4))


def _train(job: _Job) -> Estimate:
    section, shape = job.recipe.train, job.shape
    full = section.method == "full"
    trained = shape.n_params if full else _adapter_params(job)
    weight_bytes = 0.5 if section.method == "qlora" else 4 if full else DTYPE_BYTES[section.torch_dtype]
    micro = min(section.batch_tokens, section.micro_batch_tokens)
    activations = micro * shape.hidden_size * shape.num_hidden_layers * SAVED_PER_TOKEN_AND_LAYER * 4
    logits = min(micro, 2048) * shape.vocab_size * 4 * 2
    ram = TORCH_BYTES + shape.n_params * weight_bytes + trained * 16 + activations + logits
    disk = trained * 4 * (1 + 3)  # the result, and a checkpoint with both moments
    if job.tokens is None:
        return Estimate(disk, ram, None)
    per_token = 6 * trained if full else 4 * shape.n_params + 6 * trained
    passes = section.num_train_epochs * (job.tokens.train * per_token + job.tokens.validation * 2 * shape.n_params)
    seconds = IMPORT_SECONDS + passes / (_train_flops_per_s(shape.hidden_size) * _threads(section.num_threads))
    return Estimate(disk, ram, _minutes(seconds))


def _adapter_params(job: _Job) -> int:
    """Weights of the adapters: r × (inputs + outputs) of the seven matrices of each layer, about."""
    shape, lora = job.shape, job.recipe.train.lora
    targets = 7 if isinstance(lora.target_modules, str) else len(lora.target_modules)
    return int(lora.r * 3 * shape.hidden_size * targets * shape.num_hidden_layers)


def _merge(job: _Job) -> Estimate:
    size = job.shape.n_params * DTYPE_BYTES[job.recipe.merge.dtype]
    return Estimate(size, TORCH_BYTES + 2 * job.shape.n_params * 4, _minutes(IMPORT_SECONDS + size / 2e8))


def _export(job: _Job) -> Estimate:
    size = sum(_file_bytes(job, entry.ftype) for entry in job.recipe.export.gguf)
    return Estimate(size, RUNTIME_BYTES + 4 * job.shape.n_params, _minutes(2 + size / 5e7))


def _parity(job: _Job) -> Estimate:
    section, shape = job.recipe.parity, job.shape
    forms = 2 + len(job.recipe.export.gguf)
    length = job.tokens.per_test_example if job.tokens else 128.0
    generated = section.prompts * section.n_gen * forms
    seconds = IMPORT_SECONDS + generated * _decode_seconds(shape.n_params * 4)
    seconds += section.prompts * length * forms * 2 * shape.n_params / PROMPT_FLOPS_PER_S
    ram = TORCH_BYTES + 3 * 4 * shape.n_params + 4 * length * shape.vocab_size * forms
    return Estimate(1e5, ram, _minutes(seconds))


def _baseline(job: _Job) -> Estimate:
    section, shape = job.recipe.bench, job.shape
    ram = TORCH_BYTES + 2 * 4 * shape.n_params + 200e6
    if job.tokens is None:
        return Estimate(1e6, ram, None)
    tested = min(section.limit or math.inf, job.tokens.test_examples)
    few = min(section.baseline_limit, tested) * (2 if section.few_shot else 1)
    answer = min(section.max_new_tokens, 40)
    # In batches of 16: the weights are read once for 16 tokens.
    seconds = (tested + few) * answer * _decode_seconds(shape.n_params * 4) / 8
    seconds += (
        (tested + few * (1 + section.few_shot)) * job.tokens.per_test_example * (2 * shape.n_params / TRAIN_FLOPS_PER_S)
    )
    return Estimate(1e6, ram, _minutes(IMPORT_SECONDS + seconds))


def _bench(job: _Job) -> Estimate:
    section, shape = job.recipe.bench, job.shape
    size = _file_bytes(job, job.recipe.export.shipped)
    ram = RUNTIME_BYTES + size + section.n_ctx * shape.hidden_size * shape.num_hidden_layers * 4
    if job.tokens is None:
        return Estimate(1e6, ram, None)
    latency = section.latency
    tested = min(section.limit or math.inf, job.tokens.test_examples)
    timed = latency.prompts * (latency.repetitions + latency.warmup)
    generated = tested * min(section.max_new_tokens, 40) + timed * latency.n_gen
    read = (tested + timed) * job.tokens.per_test_example
    seconds = generated * _decode_seconds(size) + read * 2 * shape.n_params / PROMPT_FLOPS_PER_S
    return Estimate(1e6, ram, _minutes(3 + seconds))


def _file_bytes(job: _Job, ftype: str) -> float:
    return job.shape.n_params * BITS_PER_WEIGHT[ftype] / 8


def _decode_seconds(weight_bytes: float) -> float:
    """Seconds for one token: reading the weights, and half a millisecond of everything else."""
    return weight_bytes / DECODE_BYTES_PER_S + 5e-4


def _small(job: _Job) -> Estimate:
    return Estimate(1e5, RUNTIME_BYTES, _minutes(0.5))


def _pretrain(recipe: Recipe) -> Estimate:
    """Of a pre-training recipe: weights from its shape, tokens guessed from its script's raw data."""
    section: Any = recipe.pretrain
    model = section.model
    kv_width = model.hidden_size // model.num_attention_heads * model.num_key_value_heads
    layer = model.hidden_size * (2 * model.hidden_size + 2 * kv_width + 3 * model.intermediate_size)
    n_params = layer * model.num_hidden_layers + section.tokenizer.vocab_size * model.hidden_size
    kept = section.batch_tokens * model.hidden_size * model.num_hidden_layers * SAVED_PER_TOKEN_AND_LAYER
    disk, ram = n_params * (2 + 12), TORCH_BYTES + n_params * 16 + kept * 4
    guessed = _guess_from_inputs([recipe.resolve(path) for path in section.prepare.inputs])
    if guessed is None:
        return Estimate(disk, ram, None)
    flops = 6 * n_params * guessed.train * section.num_train_epochs
    seconds = flops / (_train_flops_per_s(model.hidden_size) * _threads(section.num_threads))
    return Estimate(disk, ram, _minutes(IMPORT_SECONDS + seconds))


COSTS: dict[str, Callable[[_Job], Estimate]] = {
    "data": _data,
    "train": _train,
    "merge": _merge,
    "export": _export,
    "parity": _parity,
    "baseline": _baseline,
    "bench": _bench,
    "gate": _small,
    "report": _small,
}
