"""Predictions: shapes against transformers, tokens against the prepared data, costs that move the right way."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest

from edgeft.console import silent_log, terminal_log
from edgeft.errors import ModelError
from edgeft.pipeline import inspect, run
from edgeft.plan import CLASSIFIER, STAGES
from edgeft.preflight import BITS_PER_WEIGHT, COSTS, Estimate, Shape, Tokens, estimate, read_shape
from edgeft.preflight.machine import (
    CACHE_BYTES,
    FLOAT32_PRODUCTS,
    PEAK,
    REFERENCE,
    Speed,
    bfloat16_by_instructions,
    speed_of_this_machine,
)
from edgeft.preflight.training import (
    CHECKPOINT_BYTES_PER_S,
    ENCODER_EXTRA,
    TrainingCost,
    trained_parameters,
    training_cost,
)
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.sections import Ftype
from edgeft.store import Store
from tests.tiny import make_tiny_llama

RECIPE = """\
name: demo
model: {base: base}
data: {train: train.jsonl, validation: test.jsonl, test: test.jsonl}
train: {num_train_epochs: 2}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("project")
    make_tiny_llama(folder / "base")
    turns = [{"role": "user", "content": "turn on the light"}, {"role": "assistant", "content": "on"}]
    for name, count in (("train.jsonl", 1000), ("test.jsonl", 100)):
        (folder / name).write_text((json.dumps({"messages": turns}) + "\n") * count)
    (folder / "raw").mkdir()
    (folder / "raw" / "text.txt").write_text("x" * 600_000)
    (folder / "make.py").write_text("")
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def costs(folder: Path, *overrides: str) -> dict[str, Estimate]:
    recipe = read_recipe(folder / "recipe.yaml", overrides)
    return estimate(recipe, inspect(recipe, Store(folder / "runs")))


def test_the_shape_is_the_models(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    shape = read_shape(folder / "base")
    assert shape.n_params == model.num_parameters()
    assert (shape.hidden_size, shape.num_hidden_layers) == (64, 2)
    assert shape.vocab_size == model.config.vocab_size


@pytest.mark.parametrize("content", [None, "{", "[]", '{"hidden_size": 1}'])
def test_a_folder_that_is_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("override", "stage", "what", "factor"),
    [
        ("train.num_train_epochs=200", "train", "minutes", 2.0),
        ("train.method=full", "train", "disk_bytes", 1.5),
        ("train={batch_tokens: 81920, micro_batch_tokens: 81920}", "train", "ram_bytes", 1.5),
        ("bench.latency.repetitions=5000", "bench", "minutes", 10.0),
    ],
)
def test_more_work_costs_more(folder: Path, override: str, stage: str, what: str, factor: float) -> None:
    before, after = getattr(costs(folder)[stage], what), getattr(costs(folder, override)[stage], what)
    assert after > factor * before


def test_sizes_on_disk(folder: Path) -> None:
    n_params = read_shape(folder / "base").n_params
    assert costs(folder)["merge"].disk_bytes == 4 * n_params
    assert costs(folder, "merge.dtype=bfloat16")["merge"].disk_bytes == 2 * n_params
    assert costs(folder, "export.gguf=[{ftype: Q8_0}]")["export"].disk_bytes == n_params * 34 / 32  # ggml's block


def test_data_from_a_script_is_guessed_from_its_inputs(folder: Path) -> None:
    known = costs(folder, "data.prepare={script: make.py, inputs: [raw]}")
    assert known["train"].minutes is not None
    unknown = costs(folder, "data.prepare={script: make.py}")
    assert unknown["train"].minutes is None
    assert unknown["merge"].minutes is not None


def test_the_guess_is_replaced_by_the_count(folder: Path, tmp_path: Path) -> None:
    recipe = read_recipe(folder / "recipe.yaml")
    guessed = costs(folder)["train"].minutes
    counts = {"train_tokens": 1e9, "test_examples": 100.0, "test_tokens": 900.0, "validation_tokens": 900.0}

    def data(recipe: object, inputs: object, out: Path, log: object) -> dict[str, float]:
        (out / "train.jsonl").write_text("")
        return counts

    run(recipe, Store(tmp_path), silent_log(), until="data", stages={"data": data})
    exact = estimate(recipe, inspect(recipe, Store(tmp_path)))
    assert "data" not in exact
    assert guessed is not None
    assert exact["train"].minutes is not None
    assert exact["train"].minutes > 100 * guessed


def test_every_stage_and_every_type_has_a_cost() -> None:
    assert set(COSTS) == {*STAGES, *(step.module for step in CLASSIFIER if step.module)} - {"pretrain"}
    assert set(BITS_PER_WEIGHT) == set(Ftype.__args__)


# Two layers of width 64, inner 128, four heads of 16 (two for keys and values): the worked example.
LAYER = {
    "q": (64, 64), "k": (32, 64), "v": (32, 64), "o": (64, 64), "gate": (128, 64), "up": (128, 64), "down": (64, 128),
}  # fmt: skip
MATRICES = {f"layers.{n}.{name}": sides for n in (0, 1) for name, sides in LAYER.items()}
LINEAR = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64)  # 73,728
HEAD = 100 * 64
SHAPE = Shape(LINEAR + HEAD, 64, 2, 100, 128, 4, 2, 16, MATRICES, {"model.embed_tokens.weight": HEAD})
TOKENS = Tokens(
    10_000, 0, 0.0, validation=1_000, validation_examples=50, answer=10, loss_share=0.5,
    text=40_000, pairs=20_000, pairs_validation=2_000,
)  # fmt: skip
CANARY = 4 * 2000 * (LINEAR + HEAD)


def built(**train: object) -> Recipe:
    given = {"method": "full", "num_train_epochs": 2, "batch_tokens": 1000, "memory_budget": "100GB"}
    given |= {"torch_dtype": "float32", **train}
    given = {name: value for name, value in given.items() if value is not None}
    data = dict.fromkeys(("train", "validation", "test", "text", "preference"), "-")
    return Recipe.build({"name": "demo", "data": data, "train": given}, Path())


@pytest.fixture
def at_one_flop_per_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are then FLOP."""
    monkeypatch.setattr(Speed, "train_flops_per_s", lambda self, width, dtype, threads: 1.0)


def cost(tokens: Tokens | None = TOKENS, **train: object) -> TrainingCost:
    return training_cost(built(**train), SHAPE, tokens)


LORA = 4 * (2 * (128 + 96 + 96 + 128 + 3 * 192))  # r = 4: 8,192 numbers


@pytest.mark.usefixtures("at_one_flop_per_s")
@pytest.mark.parametrize(
    ("train", "flop"),
    [
        # 2 epochs of 10,000 tokens, 6 FLOP a weight, the head for one token in two; two evaluations of 1,000 tokens.
        ({}, 20_000 * 6 * (LINEAR + HEAD / 2) + 2 * 1_000 * 2 * (LINEAR + HEAD / 2)),
        (
            {"method": "lora", "lora": {"r": 4}},
            20_000 * (4 * (LINEAR + HEAD / 2) + 6 * LORA) + 2 * 1_000 * 2 * (LINEAR + HEAD / 2),
        ),
        # The first of the two layers runs forward twice.
        (
            {"gradient_checkpointing": "always"},
            20_000 * (6 * (LINEAR + HEAD / 2) + LINEAR) + 2 * 1_000 * 2 * (LINEAR + HEAD / 2),
        ),
        # Every token of the documents carries loss; nothing is watched.
        ({"objective": "text"}, 80_000 * 6 * (LINEAR + HEAD)),
        # 40 steps, watched every 10: four times; pairs are passed twice, for the loss and for their order.
        (
            {"objective": "orpo", "eval_steps": 10},
            40_000 * 6 * (LINEAR + HEAD / 2) + 4 * 4_000 * 2 * (LINEAR + HEAD / 2),
        ),
        # And once more under the reference.
        (
            {"objective": "dpo", "eval_steps": 10},
            40_000 * 6 * (LINEAR + HEAD / 2) + (4 * 4_000 + 22_000) * 2 * (LINEAR + HEAD / 2),
        ),
        ({"objective": "classification"}, (20_000 * 6 + 2 * 1_000 * 2) * LINEAR * (1 + ENCODER_EXTRA) - CANARY),
        (
            {"stages": [{"objective": "text", "num_train_epochs": 1}, {"objective": "sft"}]},
            40_000 * 6 * (LINEAR + HEAD) + 20_000 * 6 * (LINEAR + HEAD / 2) + 2 * 1_000 * 2 * (LINEAR + HEAD / 2),
        ),
    ],
)  # fmt: skip
def test_flop_by_hand(train: dict[str, object], flop: float) -> None:
    assert cost(**train, save_steps=10_000).seconds == pytest.approx(flop + CANARY, rel=1e-9)


def test_memory_by_hand() -> None:
    """Float32, 1,000 tokens: kept 4 (2·64 + 12·16 + 2·128 + 7·4) a layer, worked in 4 (3·128 + 4·64)."""
    given = {"method": "lora", "lora": {"r": 4}}
    fixed = 450_000_000 + 4 * (LINEAR + HEAD) + 16 * LORA + 3 * 2**25
    whole = fixed + 1000 * (2 * 4 * 604 + 4 * 640)
    assert cost(**given).peak_bytes == whole
    tight = cost(**given, memory_budget=str(whole - 1))
    assert (tight.recomputed, tight.peak_bytes) == (1, fixed + 1000 * (4 * 604 + 4 * 64 + 4 * 640))
    assert tight.seconds is not None
    assert tight.seconds > (cost(**given).seconds or 0)
    # In NF4 a frozen weight of the linear layers takes 0.516 bytes.
    nf4 = cost(method="qlora", lora={"r": 4})
    assert whole - nf4.peak_bytes == pytest.approx(LINEAR * (4 - 0.516), abs=1)


def test_disk_by_hand() -> None:
    """A trained number takes 12 bytes in each of three states, 4 in each of three best ones, 155 a logged step."""
    n = LINEAR + HEAD
    plain = cost(save_steps=5)
    assert (plain.kept_bytes, plain.working_bytes) == (4 * n + 20 * 155, 36 * n)
    assert cost(save_steps=10).working_bytes == 36 * n
    assert cost().working_bytes == 24 * n  # saved at the end of each of two epochs
    assert cost(num_train_epochs=1).working_bytes == 12 * n
    assert cost(save_steps=5, metric_for_best_model="eval_loss").working_bytes == 48 * n
    two = cost(save_steps=5, stages=[{"objective": "text"}, {"objective": "sft"}])
    assert two.working_bytes == (36 + 24 + 4) * n
    adapters = cost(method="lora", lora={"r": 4}, save_steps=100)
    assert adapters.kept_bytes == 4 * LORA + 20 * 155
    saved, unsaved = cost(save_steps=5).seconds, cost().seconds
    assert saved is not None
    assert unsaved is not None
    assert saved - unsaved == pytest.approx(4 * 12 * n / CHECKPOINT_BYTES_PER_S, rel=1e-6)


@pytest.mark.parametrize(
    ("more", "less"),
    [
        ({"eval_examples": 50}, {}),
        ({"eval_examples": 50, "eval_steps": 2}, {"eval_examples": 50}),
        ({"num_train_epochs": 3}, {}),
        ({"method": "lora", "lora": {"r": 64}}, {"method": "lora", "lora": {"r": 4}}),
    ],
)
def test_more_work_takes_longer(more: dict[str, object], less: dict[str, object]) -> None:
    assert (cost(**more).seconds or 0) > (cost(**less).seconds or 0) > 0


def test_unknown_stays_unknown() -> None:
    assert cost(None).seconds is None
    assert cost(None, hyperparameters="auto").seconds is None


def test_automatic_hyperparameters_are_foreseen() -> None:
    """250 examples of a small model (hidden size below 512): 512 tokens a step, and 31 epochs, which make the 600 steps
    it needs by the table of `training.automatic`."""
    tokens = Tokens(10_000, 100, 50.0, train_examples=250, given=10_000, longest=300)
    chosen = cost(tokens, hyperparameters="auto", num_train_epochs=None, batch_tokens=None)
    assert chosen == cost(tokens, num_train_epochs=31, batch_tokens=512)


@pytest.mark.parametrize("chosen", [{}, {"use_dora": True}, {"target_modules": ["q", "down"]}])
def test_trained_parameters_are_pefts(chosen: dict[str, object]) -> None:
    nn = pytest.importorskip("torch.nn")
    peft = pytest.importorskip("peft")
    model = nn.Sequential()
    for name, (outputs, inputs) in LAYER.items():
        model.add_module(name, nn.Linear(inputs, outputs, bias=False))
    config = peft.LoraConfig(r=4, **{"target_modules": list(LAYER), **chosen})
    wanted = peft.get_peft_model(model, config).get_nb_trainable_parameters()[0]
    shape = Shape(0, 64, 1, 100, matrices={f"layers.0.{name}": sides for name, sides in LAYER.items()})
    assert trained_parameters(built(method="lora", lora={"r": 4, **chosen}), shape) == wanted


def test_weights_beyond_the_cache_are_read_slower() -> None:
    none, inside, beyond = (REFERENCE.decode_seconds(n * CACHE_BYTES) for n in (0, 1, 2))
    assert beyond - inside > 4 * (inside - none)


def test_another_machine_is_told_by_its_products() -> None:
    """Float32 twice as slow: everything is. Bfloat16 alone: its products are, by hand for endlessly wide layers."""
    slow = Speed(REFERENCE.bfloat16, REFERENCE.float32 / 2)
    for what in (lambda s: s.train_flops_per_s(64, "float32", 2), lambda s: s.prompt_flops_per_s(1)):
        assert what(slow) == pytest.approx(what(REFERENCE) / 2)
    assert slow.decode_seconds(1e6) == pytest.approx(2 * REFERENCE.decode_seconds(1e6))
    for factor in (0.25, 1.0, 2.0):
        other = Speed(REFERENCE.bfloat16 * factor, REFERENCE.float32)
        seconds = 1 / PEAK["bfloat16"] + (1 / factor - 1) / REFERENCE.bfloat16
        assert other.train_flops_per_s(10**9, "bfloat16", 1) == pytest.approx(1 / seconds)
        assert other.train_flops_per_s(64, "float32", 2) == REFERENCE.train_flops_per_s(64, "float32", 2)


def test_this_machine_is_measured_and_remembered(tmp_path: Path) -> None:
    """Any machine that runs this multiplies more than 0.1 GFLOP/s."""
    pytest.importorskip("torch")
    speed = speed_of_this_machine(silent_log(), tmp_path)
    assert min(speed.bfloat16, speed.float32) > 1e8


FAILS = (sys.executable, "-c", "raise SystemExit('no BLAS')")


def test_a_machine_that_cannot_be_measured_is_taken_for_that_of_the_table(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    stream = io.StringIO()
    failing = dataclasses.replace(FLOAT32_PRODUCTS, command=FAILS)
    speed = speed_of_this_machine(terminal_log(stream), tmp_path, failing)
    assert speed.float32 == REFERENCE.float32
    assert "no BLAS" in stream.getvalue()
    assert "the minutes below are of the reference machine" in stream.getvalue()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("sets", "share"),
    [
        (("avx2", "avx512f", "avx512_bf16"), 4.39),
        (("neon", "bf16"), 4.39),
        (("avx2", "avx512f"), 1.0),
        (("avx2",), 0.025),
    ],
)
def test_bfloat16_is_told_by_its_instructions(sets: tuple[str, ...], share: float) -> None:
    """470 and 107 GFLOP/s with AVX-512 and its bfloat16 products; 57 and 2,874 tokens/s of training with AVX2 alone."""
    assert bfloat16_by_instructions(1.0, sets) == pytest.approx(share, rel=0.01)


def test_a_machine_without_torch_is_taken_for_that_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("edgeft.preflight.machine.find_spec", lambda name: None)
    assert speed_of_this_machine(silent_log(), tmp_path) == REFERENCE
    assert not list(tmp_path.iterdir())
