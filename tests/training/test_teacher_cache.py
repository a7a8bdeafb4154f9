"""The teacher cache: records against float64, the loss they give, resuming, damage, sharing, size."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from edgeft.console import silent_log
from edgeft.errors import ArtifactError, ModelError
from edgeft.training import teacher_cache
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.cache_format import Layout, Top, choose_layout, decode, divergences, encode
from edgeft.training.distill_losses import Divergence, Objective, Teacher, distillation_loss_sum
from edgeft.training.teacher_cache import CacheRequest, cache_teacher, loss_rows

V = 97


def _log_p(n: int, vocabulary: int, sharpness: float = 3.0, seed: int = 0) -> torch.Tensor:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, vocabulary)) * sharpness)
    return torch.log_softmax(logits, -1).float()


@pytest.mark.parametrize("values", ["float16", "uint8"])
@pytest.mark.parametrize(("vocabulary", "k"), [(97, 8), (97, 97), (70_000, 7), (300_000, 64)])
def test_records_hold_the_most_likely_tokens(vocabulary: int, k: int, values: Any) -> None:
    """Oracle: numpy's sort, and probabilities in float64."""
    log_p, layout = _log_p(5, vocabulary), Layout(k, values, vocabulary)
    exact = log_p.double().numpy()
    records = encode(Top.of(log_p.clone(), k), layout)
    assert records.nbytes == 5 * layout.bytes_per_token
    tokens, log_probs, log_rest = decode(np.frombuffer(records.tobytes(), layout.dtype), layout)
    assert np.array_equal(tokens.numpy(), np.argsort(-exact, -1, kind="stable")[:, :k])
    wanted = np.take_along_axis(exact, tokens.numpy(), -1)
    step = np.ptp(wanted, axis=-1, keepdims=True) / 255  # half of it by rounding, as much again by normalizing
    assert (np.abs(log_probs.numpy() - wanted) <= step + 1e-4).all()
    mass = log_probs.double().exp().sum(-1) + log_rest.double().exp()
    assert mass.numpy() == pytest.approx(1.0, abs=1e-6)
    if k < vocabulary:
        assert log_rest.exp().numpy() == pytest.approx(1 - np.exp(wanted).sum(-1), rel=0.02)


@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_the_reported_divergence_is_the_formula(values: Any) -> None:
    """Oracle: KL over all tokens in float64, the rest of the cached mass spread evenly."""
    log_p, layout = _log_p(9, V), Layout(8, values, V)
    exact = log_p.double().numpy()
    top = Top.of(log_p.clone(), 8)
    records = encode(top, layout)
    tokens, log_probs, log_rest = (t.double().numpy() for t in decode(records, layout))
    cached = np.repeat(log_rest[:, None] - np.log(V - 8), V, axis=1)
    np.put_along_axis(cached, tokens.astype(np.int64), log_probs, -1)
    wanted = (np.exp(exact) * (exact - cached)).sum(-1)
    assert divergences(top, records, layout).numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_k_and_precision_are_the_smallest_that_keep_the_bound() -> None:
    log_p = _log_p(64, 5_000, sharpness=4.0)
    found = {}
    for bound in (1.0, 0.1, 0.01):
        layout, kl = choose_layout([log_p.clone()], 5_000, None, bound, 300)
        found[bound] = layout
        for k in (4, 8, 16, 32, 64, 128):
            for values in ("uint8", "float16"):
                other = Layout(k, values, 5_000)
                top = Top.of(log_p.clone(), k)
                reached = divergences(top, encode(top, other), other).mean().item()
                assert other.bytes_per_token >= layout.bytes_per_token or reached > bound
                assert other != layout or reached == pytest.approx(kl)
    assert found[1.0].bytes_per_token < found[0.1].bytes_per_token <= found[0.01].bytes_per_token <= 300
    fixed, _ = choose_layout([log_p.clone()], 5_000, 32, 1e-9, 300)
    assert fixed.k == 32


@pytest.mark.parametrize("vocabulary", [4_096, 65_536, 151_936, 1_048_576])
def test_64_tokens_take_less_than_300_bytes(vocabulary: int) -> None:
    assert Layout(64, "float16", vocabulary).bytes_per_token <= 300


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"token ids below 1,048,576, .* set distill\.top_k: null"):
        Layout(8, "uint8", 1_048_577)


def _teacher() -> Teacher:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    use_packed_attention(model)
    return Teacher(model, V)


def _tokens(n: int = 60) -> TokenSet:
    rng = np.random.default_rng(2)
    encoded = [(rng.integers(0, V, k).tolist(), (rng.random(k) < 0.6).tolist()) for k in rng.integers(1, 30, n)]
    return TokenSet.build(encoded)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD_ROWS", 100)


class _Counting:
    """A teacher that counts its forward passes."""

    def __init__(self) -> None:
        self.loaded = self.passes = 0

    def __call__(self) -> Teacher:
        self.loaded += 1
        teacher = _teacher()

        def count(*_: Any) -> None:
            self.passes += 1

        teacher.model.register_forward_hook(count)
        teacher.model.model.register_forward_hook(count)
        return teacher


REQUEST = CacheRequest("teacher", V, top_k=16, micro_batch_tokens=128)


def test_every_position_gets_its_own_distribution(tmp_path: Path, small_shards: None) -> None:
    """Oracle: the live teacher on the same batch, in an order of examples of its own."""
    tokens = _tokens()
    cached = cache_teacher(
        tmp_path, tokens, CacheRequest("t", V, top_k=V, micro_batch_tokens=128), _teacher, silent_log()
    )
    assert len(cached.shards) > 3
    index = np.random.default_rng(0).permutation(len(tokens))[:20]
    batch = cached.pack(index)
    whole = _teacher().targets(tokens.pack(index), 1.0).outcomes(slice(None))[1]
    known, log_probs = batch.targets.outcomes(slice(None))
    assert known is not None
    assert len(known) == batch.loss_count
    assert (whole.gather(1, known) - log_probs[:, :-1]).abs().max() < 0.05
    assert cached.kl < 1e-3
    assert int(loss_rows(tokens)[-1]) == sum(tokens.pack(np.array([i])).loss_count for i in range(len(tokens)))


def test_the_cached_loss_is_the_live_one(tmp_path: Path) -> None:
    tokens, student = _tokens(), _teacher().model
    torch.nn.init.normal_(student.lm_head.weight)
    request = CacheRequest("t", V, temperature=2.0, top_k=V)
    cached = cache_teacher(tmp_path, tokens, request, _teacher, silent_log())
    objective = Objective(Divergence(beta=0.5, temperature=2.0))
    index = np.arange(12)
    live = distillation_loss_sum(objective, V, _teacher())(student, tokens.pack(index)).item()
    assert distillation_loss_sum(objective, V)(student, cached.pack(index)).item() == pytest.approx(live, rel=2e-3)


def test_a_second_trial_computes_nothing(tmp_path: Path, small_shards: None) -> None:
    teacher = _Counting()
    first = cache_teacher(tmp_path, _tokens(), REQUEST, teacher, silent_log())
    passes = teacher.passes
    second = cache_teacher(tmp_path, _tokens(), REQUEST, teacher, silent_log())
    assert (teacher.loaded, teacher.passes) == (1, passes)
    assert first.pack(np.arange(5)).targets.log_probs.equal(second.pack(np.arange(5)).targets.log_probs)
    assert second.n_bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))


@pytest.mark.parametrize(
    "change",
    [
        lambda request, tokens: (CacheRequest("other", V, top_k=16, micro_batch_tokens=128), tokens),
        lambda request, tokens: (CacheRequest("teacher", V, 2.0, 16, micro_batch_tokens=128), tokens),
        lambda request, tokens: (CacheRequest("teacher", V, top_k=8, micro_batch_tokens=128), tokens),
        lambda request, tokens: (request, _tokens(61)),
    ],
)
def test_what_changes_the_records_changes_the_key(change: Callable[..., Any]) -> None:
    request, tokens = change(REQUEST, _tokens())
    assert request.key(tokens) != REQUEST.key(_tokens())


def _damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: _damage(folder / "00002.bin"),
        lambda folder: (folder / "00002.bin").write_bytes((folder / "00002.bin").read_bytes()[:-1]),
        lambda folder: (folder / "00002.json").write_text("{"),
        lambda folder: (folder / "00002.json").unlink(),
    ],
)
def test_a_damaged_shard_is_found_and_made_again(
    tmp_path: Path, small_shards: None, harm: Callable[[Path], Any]
) -> None:
    cache_teacher(tmp_path, _tokens(), REQUEST, _teacher, silent_log())
    folder = next(tmp_path.glob("teacher-*"))
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    untouched = (folder / "00001.bin").stat().st_mtime_ns
    harm(folder)
    teacher = _Counting()
    cache_teacher(tmp_path, _tokens(), REQUEST, teacher, silent_log())
    assert teacher.loaded == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert (folder / "00001.bin").stat().st_mtime_ns == untouched


def test_a_full_disk_is_said_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ArtifactError, match=r"will take .* GB and the disk has 0\.00 GB; free some space"):
        cache_teacher(tmp_path, _tokens(), REQUEST, _teacher, silent_log())


KILLED = """
import os, signal, sys
from pathlib import Path
from edgeft.console import silent_log
from edgeft.training import teacher_cache
from tests.training.test_teacher_cache import REQUEST, _teacher, _tokens
teacher_cache.SHARD_ROWS = 100
written = teacher_cache.write_atomic
def write_then_die(path, content):
    written(path, content)
    if path.name == "00002.json":
        os.kill(os.getpid(), signal.SIGKILL)
teacher_cache.write_atomic = write_then_die
teacher_cache.cache_teacher(Path(sys.argv[1]), _tokens(), REQUEST, _teacher, silent_log())
"""


@pytest.mark.slow
def test_what_a_kill_leaves_is_gone_on_from(tmp_path: Path, small_shards: None, repo_root: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "cut")], env=environment, check=False)
        assert done.returncode == -signal.SIGKILL
        folder = next((tmp_path / "cut").glob("teacher-*"))
        assert sorted(path.name for path in folder.glob("*.bin")) == ["00000.bin", "00001.bin", "00002.bin"]
        cut = cache_teacher(tmp_path / "cut", _tokens(), REQUEST, _teacher, silent_log())
        whole = cache_teacher(tmp_path / "whole", _tokens(), REQUEST, _teacher, silent_log())
    finally:
        torch.set_num_threads(threads)
    for (_, ours), (_, theirs) in zip(cut.shards, whole.shards, strict=True):
        assert np.array_equal(ours, theirs)
    assert json.loads((folder / "00003.json").read_bytes())["sha256"]
