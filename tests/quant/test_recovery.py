"""Recovery on a tiny model: what training through the grid gains, keeps and goes on with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from edgeft.console import silent_log
from edgeft.quant.ggml import GgmlType
from edgeft.quant.grids.fake import Grid, round_rows
from edgeft.quant.grids.onnx import MatMulNBits
from edgeft.quant.recovery import Recovery, recover
from edgeft.quant.rounded import LowRank, Rounding
from edgeft.training.batches import TokenSet, plan_epochs
from edgeft.training.keeping import SaveRule
from edgeft.training.loop import LoopConfig
from edgeft.training.models import load_model
from tests.tiny import make_tiny_llama

LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
NAMES = ["model.embed_tokens.weight", *(f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in LAYERS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), initializer_range=0.2)


def texts(seed: int, n: int) -> TokenSet:
    """Random walks over a few tokens, every one of which carries loss."""
    source = np.random.default_rng(seed)
    return TokenSet.build([(source.integers(3, 40, 24).tolist(), [True] * 24) for _ in range(n)])


def run(folder: Path, out: Path, grid: Grid = GgmlType.Q4_0, **changes: Any) -> Recovery:
    torch.manual_seed(0)
    options = {"learning_rate": 1e-3, "epochs": 3.0, "lora": None, "kd_ratio": 1.0, "optimizer": torch.optim.AdamW}
    options |= changes
    tokens, rate = texts(0, 64), options["learning_rate"]
    config = LoopConfig(
        learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=0.1, max_grad_norm=1.0,
        micro_batch_tokens=256, save=SaveRule(seconds=None, steps=5), eval_steps=8,
    )  # fmt: skip
    return recover(
        load_model(folder),
        {name: Rounding(grid) for name in NAMES},
        tokens,
        texts(1, 16),
        plan_epochs(tokens.lengths, batch_tokens=256, epochs=options["epochs"], seed=0),
        config,
        make_optimizer=lambda parameters: options["optimizer"](parameters, lr=rate, weight_decay=0.0),
        kd_ratio=options["kd_ratio"],
        lora=options["lora"],
        out=out,
        log=silent_log(),
    )


def mean_kl(folder: Path, model: Any, grid: Grid) -> float:
    """KL(the folder's ‖ `model` with its matrices rounded) on the held-out texts, in float64, straight from logits."""
    plain, student = load_model(folder), model
    tokens = texts(1, 16)
    ids = torch.from_numpy(tokens.input_ids.reshape(16, 24)).long()
    with torch.no_grad():
        for name in NAMES:
            weight = student.get_parameter(name)
            weight.copy_(torch.from_numpy(round_rows(weight.numpy(), grid)))
        student.set_attn_implementation("eager")
        log_p, log_q = (F.log_softmax(m(ids).logits[:, :-1].double(), -1) for m in (plain, student))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


@pytest.mark.parametrize(
    ("grid", "lora"),
    [(GgmlType.Q4_0, None), (GgmlType.Q4_0, LowRank(8, 16.0)), (MatMulNBits(4, 32, symmetric=False), None)],
    ids=["full", "lora", "onnx"],
)
def test_recovery_lowers_the_divergence_on_held_out_tokens(
    folder: Path, tmp_path: Path, grid: Grid, lora: LowRank | None
) -> None:
    found = run(folder, tmp_path, grid, lora=lora, learning_rate=1e-3 if lora is None else 5e-3)
    assert found.kl_after < (0.8 if lora is None else 0.95) * found.kl_before
    assert found.kl_before == pytest.approx(mean_kl(folder, load_model(folder), grid), rel=1e-3)
    assert found.kl_after == pytest.approx(mean_kl(folder, found.model, grid), rel=1e-3)


def test_a_model_that_training_would_spoil_stays_as_it_was(folder: Path, tmp_path: Path) -> None:
    found = run(folder, tmp_path, GgmlType.Q8_0, learning_rate=0.05, epochs=1.0)
    assert found.kl_after == found.kl_before
    state = load_model(folder).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.model.state_dict().items())


def test_labels_count_beside_the_divergence(folder: Path, tmp_path: Path) -> None:
    """Half the loss is cross-entropy, whose first value on a random model is near log V; evaluations are KL alone."""
    plain, mixed = (run(folder, tmp_path / str(r), kd_ratio=r, epochs=0.5) for r in (1.0, 0.5))
    assert plain.kl_before == mixed.kl_before
    assert mixed.loop.first_loss > 1 > plain.loop.first_loss


class Interrupted(Exception):
    """The run was stopped."""


class StopsAtStep7(torch.optim.AdamW):
    n_steps = 0

    def step(self, *args: Any) -> Any:
        self.n_steps += 1
        if self.n_steps == 7:
            raise Interrupted
        return super().step(*args)


@pytest.mark.parametrize("lora", [None, LowRank(4, 8.0)], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_to_the_same_weights(folder: Path, tmp_path: Path, lora: LowRank | None) -> None:
    whole = run(folder, tmp_path / "whole", lora=lora, epochs=2.0)
    with pytest.raises(Interrupted):
        run(folder, tmp_path / "half", lora=lora, epochs=2.0, optimizer=StopsAtStep7)
    assert (tmp_path / "half/checkpoint/state.pt").exists()
    again = run(folder, tmp_path / "half", lora=lora, epochs=2.0)
    assert again.kl_after == whole.kl_after
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in again.model.state_dict().items())
