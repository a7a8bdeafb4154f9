"""What a distillation will cost, before it is run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgeft.pipeline import inspect
from edgeft.preflight import Shape, Tokens, estimate, read_shape, student
from edgeft.preflight.machine import REFERENCE, Speed
from edgeft.preflight.student import final_shape
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.store import Store
from tests.tiny import make_tiny_llama

SHAPE = {
    "num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_the_student_is_counted_as_torch_counts_it(tmp_path: Path, tied: bool) -> None:
    make_tiny_llama(tmp_path / "base", tie_word_embeddings=tied)
    line = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(line * 9)
    content = {
        "name": "t", "model": {"base": "base"}, "train": {"torch_dtype": "float32"}, "distill": {"student": SHAPE},
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(content))
    recipe = read_recipe(tmp_path / "r.yaml")
    teacher = read_shape(tmp_path / "base")
    config = LlamaConfig(vocab_size=teacher.vocab_size, head_dim=16, tie_word_embeddings=tied, **SHAPE)
    with torch.device("meta"):
        wanted = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
        linear = sum(
            module.weight.numel()
            for name, module in LlamaForCausalLM(config).named_modules()
            if isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
    assert final_shape(recipe, teacher).n_params == wanted
    assert final_shape(recipe, teacher).linear == linear
    costs = estimate(recipe, inspect(recipe, Store(tmp_path / "runs")))
    assert costs["distill"].minutes is not None
    assert costs["distill"].disk_bytes is not None
    assert costs["distill"].disk_bytes > 4 * wanted
    assert costs["export"].disk_bytes is not None
    assert costs["export"].disk_bytes < 4 * wanted


def test_distilling_takes_what_its_passes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, at one FLOP a second and tokens generated in no time: the teacher reads 110 tokens once, the student
    learns 100 and is watched on 10, three times; both are compared on 10, twice."""
    monkeypatch.setattr(Speed, "train_flops_per_s", lambda self, width, dtype, threads: 1.0)
    monkeypatch.setattr(student, "generation_seconds", lambda *_: 0.0)
    matrices = {f"{n}.{name}": (32, 64) for n in range(2) for name in "qkvo"} | {
        f"{n}.{name}": (100, 64) for n in range(2) for name in ("gate", "up", "down")
    }
    base = Shape(0, 64, 2, 50, 100, 2, 2, 16, matrices)
    tokens = Tokens(100, 0, 0.0, validation=10, loss_share=0.5)
    settings = {"student": SHAPE, "num_train_epochs": 3}
    data = dict.fromkeys(("train", "validation", "test"), "-")
    recipe = Recipe.build({"name": "d", "data": data, "train": {"torch_dtype": "float32"}, "distill": settings}, Path())
    of_teacher = 2 * (2 * (4 * 32 * 64 + 3 * 100 * 64) + 50 * 64 / 2)
    of_student = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32 + 50 * 32 / 2)
    cached = 110 * of_teacher + 3 * 310 * of_student / student.LESSON_SHARE + 20 * (of_teacher + of_student)
    assert student.distilling_seconds(recipe, base, tokens, REFERENCE) == pytest.approx(cached)
    live = recipe.model_copy(update={"distill": recipe.distill.model_copy(update={"top_k": None})})
    assert student.distilling_seconds(live, base, tokens, REFERENCE) == pytest.approx(cached + 220 * of_teacher)
