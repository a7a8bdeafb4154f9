"""A teacher's distributions, computed once and read by every training that asks for the same.

    FOLDER/teacher-KEY/cache.json    layout, temperature, the key in full; written first
    FOLDER/teacher-KEY/00000.bin     the loss positions of some examples in a row (`cache_format`)
    FOLDER/teacher-KEY/00000.json    its sha256 and what was measured, written when the .bin is whole
    FOLDER/teacher-KEY/lock          held by who computes

The key is the hash of the teacher's weights, the examples' tokens, the temperature and what was asked for; two
trials that differ in anything else share the folder. A shard is one unit of work: after a kill the ones that are
whole stay, one whose content is not its hash is computed again.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.artifact import refused_writes, sha256_file, write_atomic, writing
from edgeft.console import Log
from edgeft.errors import ArtifactError
from edgeft.machine.locks import locked
from edgeft.training.batches import TokenSet
from edgeft.training.cache_format import (
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
from edgeft.training.distill_losses import DistillBatch, Teacher, TopTargets
from edgeft.training.losses import chunk_rows

FORMAT = 2
SHARD_ROWS = 16384
SAMPLE_ROWS = 512  # positions that the layout is chosen on
MAX_BYTES = 300  # a token in the mean, for a layout that is chosen


@dataclass(frozen=True)
class CacheRequest:
    """What is to be cached: `teacher_key` names the teacher's weights; `top_k` tokens of each position, or None: as
    many of each as it takes for KL(whole ‖ cached) to be `max_kl` nats a token at most, in the mean."""

    teacher_key: str
    vocabulary: int
    temperature: float = 1.0
    top_k: int | None = None
    max_kl: float = 0.001
    micro_batch_tokens: int = 4096

    def key(self, tokens: TokenSet) -> str:
        """Hex sha256 of everything the records depend on."""
        digest = hashlib.sha256(json.dumps([FORMAT, SHARD_ROWS, asdict(self)], sort_keys=True).encode())
        for array in (tokens.input_ids, tokens.loss_mask, tokens.offsets):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class CachedSet:
    """Examples with their teacher's distributions; an `Examples` for the loop whose batches are DistillBatch.

    `rows` (n+1,) bounds each example's positions, `shards` hold them from the given one on; `kl` is the mean
    KL(whole ‖ cached) in nats a token, `tail_mass` the mean probability of the tokens that are not kept.
    """

    tokens: TokenSet
    layout: Layout
    rows: np.ndarray
    shards: Sequence[tuple[int, Shard]]
    kl: float
    tail_mass: float

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, (n,)."""
        return self.tokens.lengths

    @property
    def n_bytes(self) -> int:
        """Size on disk."""
        return sum(shard.content.nbytes for _, shard in self.shards)

    @property
    def bytes_per_token(self) -> float:
        """Mean size of a position."""
        return self.n_bytes / max(1, int(self.rows[-1]))

    @property
    def mean_k(self) -> float:
        """Tokens kept of a position, in the mean."""
        return sum(int(shard.bounds[-1]) for _, shard in self.shards) / max(1, int(self.rows[-1]))

    def pack(self, index: np.ndarray) -> DistillBatch:
        """The packed row of the examples `index` (B,), with targets; its loss positions by their number of known
        tokens, so that those in a chunk are alike."""
        batch = self.tokens.pack(index)
        records = Records.join([self._records(int(i)) for i in index])
        order = np.argsort(records.counts, kind="stable")
        records, at = records.ordered(order), torch.from_numpy(order)
        fields = vars(batch) | {"loss_positions": batch.loss_positions[at], "labels": batch.labels[at]}
        return DistillBatch(**fields, targets=top_targets(records))

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.array([start for start, _ in self.shards])

    def _records(self, example: int) -> Records:
        """All of one example, which lies in one shard."""
        start, stop = int(self.rows[example]), int(self.rows[example + 1])
        first, shard = self.shards[int(np.searchsorted(self._starts, start, side="right")) - 1]
        return shard.read(start - first, stop - first)


def cache_teacher(
    root: Path, tokens: TokenSet, request: CacheRequest, load_teacher: Callable[[], Teacher], log: Log
) -> CachedSet:
    """The examples with the teacher's distributions, read from `root` or computed into it.

    The teacher is loaded only if something is missing. Raises ArtifactError when the disk has no room for what will
    be written, which is known before.
    """
    key = request.key(tokens)
    folder = root / f"teacher-{key[:16]}"
    rows = loss_rows(tokens)
    bounds = _shard_bounds(rows)
    with _locked(folder):
        missing = _missing(folder, len(bounds), log)
        layout = _read_layout(folder, key)
        if missing or layout is None:
            teacher = load_teacher()
            layout = layout or _choose(folder, key, tokens, teacher, request, int(rows[-1]), log)
            _compute(folder, missing, bounds, tokens, teacher, layout, request, log)
    reports = [json.loads(_path(folder, shard, "json").read_bytes()) for shard in range(len(bounds))]
    shards = [
        (int(rows[first]), _open(_path(folder, shard, "bin"), int(rows[stop] - rows[first]), layout))
        for shard, (first, stop) in enumerate(bounds)
    ]
    kl, tail = (sum(report[name] for report in reports) / max(1, int(rows[-1])) for name in ("kl_sum", "tail_sum"))
    cached = CachedSet(tokens, layout, rows, shards, kl, tail)
    log.say(
        f"teacher cache: {cached.n_bytes / 1e6:.1f} MB, {cached.bytes_per_token:.0f} bytes a token (top "
        f"{cached.mean_k:.1f} in the mean, {layout.values}), KL to the whole {kl:.2g} nats a token, "
        f"{tail:.2%} of the mass outside"
    )
    return cached


def top_targets(records: Records) -> TopTargets:
    """What the positions say, as a loss takes it."""
    bounds = np.concatenate([[0], np.cumsum(records.counts)])
    return TopTargets(*decode(records), torch.from_numpy(bounds))


def loss_rows(tokens: TokenSet) -> np.ndarray:
    """Bounds (n+1,) of the examples' loss positions, all counted through: a first token has no predecessor."""
    mask = tokens.loss_mask.copy()
    mask[tokens.offsets[:-1][tokens.lengths > 0]] = False
    before = np.concatenate([[0], np.cumsum(mask, dtype=np.int64)])
    return before[tokens.offsets]


def _shard_bounds(rows: np.ndarray) -> list[tuple[int, int]]:
    """Examples [first, stop) of each shard: at least `SHARD_ROWS` records, except the last."""
    bounds, first = [], 0
    while first < len(rows) - 1:
        stop = int(np.searchsorted(rows, rows[first] + SHARD_ROWS))
        stop = min(max(stop, first + 1), len(rows) - 1)
        if rows[stop] > rows[first]:
            bounds.append((first, stop))
        first = stop
    return bounds


def _choose(
    folder: Path, key: str, tokens: TokenSet, teacher: Teacher, request: CacheRequest, n_rows: int, log: Log
) -> Layout:
    """Choose the layout on the first examples of an even sample, and write it down."""
    order = np.random.default_rng(0).permutation(len(tokens))
    counts = np.cumsum(np.diff(loss_rows(tokens))[order])
    sample = order[: int(np.searchsorted(counts, SAMPLE_ROWS)) + 1]
    whole = _distributions(teacher, tokens, sample, request)
    chosen = choose_layout(whole, request.vocabulary, request.top_k, request.max_kl, MAX_BYTES)
    if chosen.kl > request.max_kl:
        why = f"top {request.top_k}" if request.top_k else f"the nearest within {MAX_BYTES} bytes a token"
        log.say(
            f"teacher cache: KL to the whole distribution {chosen.kl:.2g} nats a token on a sample, more than "
            f"distill.cache_kl {request.max_kl:g}: {why}"
        )
    expected = n_rows * chosen.bytes_per_token
    log.say(f"teacher cache: about {expected / 1e6:.1f} MB to be written ({chosen.bytes_per_token:.0f} bytes a token)")
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise ArtifactError(
            f"{folder}: the teacher cache will take {expected / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB; "
            "free some space, lower distill.top_k, or set distill.top_k: null to compute the teacher in every step"
        )
    content = {"format": FORMAT, "key": key, "layout": asdict(chosen.layout), "temperature": request.temperature}
    write_atomic(folder / "cache.json", json.dumps(content, indent=1) + "\n")
    return chosen.layout


def _compute(
    folder: Path,
    missing: list[int],
    bounds: list[tuple[int, int]],
    tokens: TokenSet,
    teacher: Teacher,
    layout: Layout,
    request: CacheRequest,
    log: Log,
) -> None:
    """Write the shards that are missing, each on its own."""
    with log.progress("teacher", len(bounds), "shards", len(bounds) - len(missing)) as progress:
        for done, shard in enumerate(missing, len(bounds) - len(missing) + 1):
            first, stop = bounds[shard]
            kl = tail = 0.0
            path = _path(folder, shard, "bin")
            parts = []
            for log_p in _distributions(teacher, tokens, np.arange(first, stop), request):
                top = Top.of(log_p, layout.most)
                parts.append(encode(top, layout))
                kl += float(divergences(top, parts[-1], layout).sum())
                tail += float(np.exp(parts[-1].heads["log_rest"], dtype=np.float64).sum())
            with writing(path) as temporary:
                temporary.write_bytes(shard_bytes(Records.join(parts), layout))
            report = {"sha256": sha256_file(path), "kl_sum": kl, "tail_sum": tail}
            write_atomic(_path(folder, shard, "json"), json.dumps(report) + "\n")
            progress.update(done)


@torch.no_grad()
def _distributions(
    teacher: Teacher, tokens: TokenSet, index: np.ndarray, request: CacheRequest
) -> Iterator[torch.Tensor]:
    """Log-probabilities (C, V) at the loss positions of the examples `index`, in order, in chunks."""
    size = chunk_rows(request.vocabulary, head_trains=False)
    lengths = tokens.lengths
    start = 0
    while start < len(index):
        total = np.cumsum(lengths[index[start:]])
        stop = start + max(1, int(np.searchsorted(total, request.micro_batch_tokens, side="right")))
        batch = tokens.pack(index[start:stop])
        start = stop
        if not batch.loss_count:
            continue
        targets = teacher.targets(batch, request.temperature)
        for at in range(0, batch.loss_count, size):
            yield targets.outcomes(slice(at, at + size))[1]


def _missing(folder: Path, shards: int, log: Log) -> list[int]:
    """Shards that are not there whole; a damaged one is said."""
    missing = []
    for shard in range(shards):
        path, report = _path(folder, shard, "bin"), _path(folder, shard, "json")
        if not path.exists() or not report.exists():
            missing.append(shard)
        elif _sha256_of(report) != sha256_file(path):
            log.say(f"{path} is damaged: its content is not what was written; computing it again")
            missing.append(shard)
    return missing


def _sha256_of(report: Path) -> Any:
    try:
        return json.loads(report.read_bytes())["sha256"]
    except (ValueError, KeyError, TypeError):
        return None


def _read_layout(folder: Path, key: str) -> Layout | None:
    """The layout written down for this key, or None."""
    try:
        content = json.loads((folder / "cache.json").read_bytes())
        return Layout(**content["layout"]) if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _open(path: Path, positions: int, layout: Layout) -> Shard:
    return Shard(np.memmap(path, np.uint8, mode="r"), positions, layout)


def _path(folder: Path, shard: int, kind: str) -> Path:
    return folder / f"{shard:05d}.{kind}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until nobody else computes into `folder`."""
    with ExitStack() as held:
        with refused_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / "lock"))
        yield
