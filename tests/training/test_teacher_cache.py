"""The teacher cache: records against float64, the loss they give, resuming, damage, sharing, size."""

import itertools
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
from edgeft.training.cache_format import (
    MOST,
    TAILS,
    Layout,
    Records,
    Shard,
    Top,
    choose_layout,
    decode,
    divergences,
    encode,
    shard_bytes,
)
from edgeft.training.distill_losses import Divergence, Objective, Teacher, distillation_loss_sum
from edgeft.training.losses import model_inputs
from edgeft.training.teacher_cache import CacheRequest, cache_teacher, loss_rows

V = 97


def _log_p(n: int, vocabulary: int, sharpness: float = 3.0, seed: int = 0) -> torch.Tensor:
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, vocabulary)) * sharpness)
    return torch.log_softmax(logits, -1).float()


def _stored(records: Records, layout: Layout) -> Shard:
    """As it is read from a file."""
    content = np.frombuffer(shard_bytes(records, layout), np.uint8)
    assert len(content) == layout.n_bytes(len(records.heads), len(records.ids))
    return Shard(content, len(records.heads), layout)


@pytest.mark.parametrize("values", ["float16", "uint8"])
@pytest.mark.parametrize(
    ("vocabulary", "most", "tail"),
    [
        (97, 8, 0.0),
        (97, 97, 0.0),
        (70_000, 7, 0.0),
        (300_000, 64, 0.0),
        (97, 97, 0.05),
        (97, 20, 0.01),
        (70_000, 999, 0.1),
    ],
)
def test_records_hold_the_most_likely_tokens(vocabulary: int, most: int, tail: float, values: Any) -> None:
    """Oracle: numpy's sort, and probabilities in float64; positions are read in parts and in another order."""
    log_p, layout = _log_p(7, vocabulary, sharpness=4.0), Layout(most, values, vocabulary, tail)
    exact = np.sort(log_p.double().numpy())[:, ::-1]
    ids = np.argsort(-log_p.numpy(), -1, kind="stable")
    outside = 1 - np.cumsum(np.exp(exact), -1)
    wanted = [min(most, 1 + int((o > tail).sum())) if tail else most for o in outside]
    shard = _stored(encode(Top.of(log_p.clone(), most), layout), layout)
    order = np.array([4, 0, 6, 5])
    parts = Records.join([shard.read(0, 3), shard.read(3, 3), shard.read(3, 7)]).ordered(order)
    tokens, log_probs, log_rest = (t.numpy() for t in decode(parts))
    assert parts.counts.tolist() == [wanted[row] for row in order]
    bounds = np.cumsum([0, *parts.counts])
    for at, row in enumerate(order):
        span, k = slice(bounds[at], bounds[at + 1]), wanted[row]
        assert np.array_equal(tokens[span], ids[row, :k])
        step = np.ptp(exact[row, :k]) / 255  # half of it by rounding, as much again by normalizing
        assert (np.abs(log_probs[span] - exact[row, :k]) <= step + 2e-3).all()
        assert np.exp(log_probs[span], dtype=float).sum() + np.exp(log_rest[at], dtype=float) == pytest.approx(
            1, abs=1e-6
        )
        if k < vocabulary and outside[row, k - 1] > 1e-4:
            assert np.exp(log_rest[at]) == pytest.approx(outside[row, k - 1], rel=0.02)


@pytest.mark.parametrize("tail", [0.0, 0.1])
@pytest.mark.parametrize("values", ["float16", "uint8"])
def test_the_reported_divergence_is_the_formula(values: Any, tail: float) -> None:
    """Oracle: KL over all tokens in float64, the rest of the cached mass spread evenly."""
    log_p, layout = _log_p(9, V), Layout(8, values, V, tail)
    exact = log_p.double().numpy()
    top = Top.of(log_p.clone(), 8)
    records = encode(top, layout)
    tokens, log_probs, log_rest = (t.double().numpy() for t in decode(records))
    counts = records.counts
    assert (len(set(counts)) > 1) == (tail > 0)
    cached = np.repeat((log_rest - np.log(V - counts))[:, None], V, axis=1)
    cached[np.repeat(np.arange(9), counts), tokens.astype(np.int64)] = log_probs
    wanted = (np.exp(exact) * (exact - cached)).sum(-1)
    assert divergences(top, records, layout).numpy() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_the_layout_is_the_smallest_that_keeps_the_bound() -> None:
    log_p = torch.cat([_log_p(64, 5_000, sharpness) for sharpness in (20.0, 4.0)])
    found = {}
    for bound in (1.0, 0.1, 0.01):
        found[bound] = choice = choose_layout([log_p.clone()], 5_000, None, bound, 3000)
        for most, tail in itertools.product(MOST, TAILS):
            for values in ("uint8", "float16"):
                other = Layout(most, values, 5_000, tail)
                top = Top.of(log_p.clone(), most)
                records = encode(top, other)
                reached = divergences(top, records, other).mean().item()
                size = len(_stored(records, other).content) / len(log_p)
                assert size >= choice.bytes_per_token or reached > bound
                assert other != choice.layout or (reached, size) == pytest.approx((choice.kl, choice.bytes_per_token))
    assert found[1.0].bytes_per_token < found[0.1].bytes_per_token < found[0.01].bytes_per_token <= 3000
    assert choose_layout([log_p.clone()], 5_000, 32, 1e-9, 300).layout.most == 32


@pytest.mark.parametrize("vocabulary", [4_096, 65_536, 151_936])
def test_what_no_few_tokens_say_stays_within_the_size(vocabulary: int) -> None:
    """Of a teacher that knows nothing, the nearest of at most 300 bytes."""
    log_p = _log_p(8, vocabulary, sharpness=0.1)
    choice = choose_layout([log_p], vocabulary, None, 1e-3, 300)
    assert choice.kl > 1e-3
    assert 200 < choice.bytes_per_token <= 300


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
    batch, live = cached.pack(index), tokens.pack(index)
    place = {position: at for at, position in enumerate(live.loss_positions.tolist())}
    at = [place.pop(position) for position in batch.loss_positions.tolist()]
    assert not place
    assert batch.labels.equal(live.labels[at])
    whole = _teacher().targets(live, 1.0).outcomes(slice(None))[1][at]
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


def test_tokens_that_a_position_does_not_keep_count_to_its_rest(tmp_path: Path) -> None:
    """Oracle: KL over k + 1 outcomes in float64, k as the position has it; gradients by the same with autograd."""
    tokens, student = _tokens(), _teacher().model.requires_grad_()
    torch.nn.init.normal_(student.lm_head.weight)
    cached = cache_teacher(tmp_path, tokens, CacheRequest("t", V, max_kl=0.1), _teacher, silent_log())
    assert cached.layout.tail > 0
    batch = cached.pack(np.array([3, 1, 7, 20]))
    (loss := distillation_loss_sum(Objective(), V)(student, batch)).backward()
    slope = student.lm_head.weight.grad.clone()

    student.zero_grad()
    hidden = student.model(**model_inputs(batch)).last_hidden_state[0, batch.loss_positions]
    q = torch.softmax((hidden @ student.lm_head.weight.T).double(), -1)
    total = torch.zeros((), dtype=torch.float64)
    counts = batch.targets.bounds.diff().tolist()
    assert len(set(counts)) > 2
    assert counts == sorted(counts)
    for row, (start, count) in enumerate(zip(batch.targets.bounds.tolist(), counts, strict=False)):
        known = batch.targets.tokens[start : start + count]
        log_p = torch.cat([batch.targets.log_probs[start : start + count], batch.targets.log_rest[row, None]]).double()
        rest = q[row].sum() - q[row, known].sum()
        total = total + (log_p.exp() * (log_p - torch.cat([q[row, known], rest[None]]).log())).sum()
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-4)
    assert slope == pytest.approx(student.lm_head.weight.grad, rel=1e-3, abs=1e-4)


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
        assert np.array_equal(ours.content, theirs.content)
    assert json.loads((folder / "00003.json").read_bytes())["sha256"]
