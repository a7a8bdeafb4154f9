"""What a distillation will cost, before it is run."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgeft.pipeline import inspect
from edgeft.preflight import estimate, read_shape
from edgeft.preflight.student import final_shape
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
        "name": "t", "model": {"base": "base"}, "train": {}, "distill": {"student": SHAPE},
        "data": {split: f"{split}.jsonl" for split in ("train", "validation", "test")},
    }  # fmt: skip
    (tmp_path / "r.yaml").write_text(json.dumps(content))
    recipe = read_recipe(tmp_path / "r.yaml")
    teacher = read_shape(tmp_path / "base")
    config = LlamaConfig(vocab_size=teacher.vocab_size, head_dim=16, tie_word_embeddings=tied, **SHAPE)
    with torch.device("meta"):
        wanted = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    assert final_shape(recipe, teacher).n_params == wanted
    costs = estimate(recipe, inspect(recipe, Store(tmp_path / "runs")))
    assert costs["distill"].minutes is not None
    assert costs["distill"].disk_bytes is not None
    assert costs["distill"].disk_bytes > 4 * wanted
    assert costs["export"].disk_bytes is not None
    assert costs["export"].disk_bytes < 4 * wanted
