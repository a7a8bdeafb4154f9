"""`edgeft train` under torchrun: two workers leave what one leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.tiny import make_tiny_llama

RECIPE = """
name: t
model: {base: base}
data: {train: chat.jsonl, validation: chat.jsonl, test: chat.jsonl, preference: pairs.jsonl, max_length: 64,
  allow: [E503]}
train:
  method: full
  num_train_epochs: 1
  batch_tokens: 160
  num_threads: 1
  torch_dtype: float32
  stages: [{objective: sft}, {objective: dpo, learning_rate: 1.0e-4}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    make_tiny_llama(folder / "base")
    chat = [[("user", f"colour {i}"), ("assistant", "red green"[: 3 + i % 7])] for i in range(12)]
    rows = {
        "chat": [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in chat],
        "pairs": [
            {
                "prompt": [{"role": "user", "content": f"say {i}"}],
                "chosen": [{"role": "assistant", "content": "yes"}],
                "rejected": [{"role": "assistant", "content": "no"}],
            }
            for i in range(12)
        ],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def _train(folder: Path, workdir: str, *launcher: str) -> Path:
    command = [
        sys.executable, "-m", *launcher, "edgeft", "train", str(folder / "recipe.yaml"),
        "--workdir", str(folder / workdir),
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / workdir / "t" / "train"


@pytest.mark.slow
def test_two_workers_leave_what_one_leaves(folder: Path) -> None:
    one = _train(folder, "one")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m")
    two = _train(folder, "two", *torchrun)
    weights = load_file(two / "model" / "model.safetensors")
    untrained = load_file(folder / "base" / "model.safetensors")
    for name, value in load_file(one / "model" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(weights[name], untrained[name]), name
    assert (two / "log.jsonl").read_text().count("\n") == (one / "log.jsonl").read_text().count("\n")
    _train(folder, "two", *torchrun)  # up to date: neither worker waits for the other
