"""Duplicates, leakage and conflicts across all files, from hashes; near duplicates from LSH bands on disk.

Memory: 36 bytes an example for what is exact. Band keys lie in one file per band, so that only one band is
in memory at a time, and signatures are read only for the pairs that share a band.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgeft.data.check.examine import N_BANDS, N_PERM, Part

NEAR = 0.8
PAIRS_AT_ONCE = 20_000


@dataclass
class Hashes:
    """One row per example, in the order of files and lines."""

    file: list[Any] = field(default_factory=list)
    line: list[Any] = field(default_factory=list)
    content: list[Any] = field(default_factory=list)
    prompt: list[Any] = field(default_factory=list)
    answer: list[Any] = field(default_factory=list)

    def add(self, file: int, first_line: int, part: Part) -> None:
        self.file.append(np.full(len(part.lines), file, np.uint8 if file < 256 else np.uint16))
        self.line.append(part.lines + np.uint32(first_line))
        for name in ("content", "prompt", "answer"):
            getattr(self, name).append(getattr(part, name))

    def joined(self) -> "Joined":
        return Joined(
            *(np.concatenate(getattr(self, n)) if self.file else np.empty(0, np.uint64) for n in self.__annotations__)
        )


@dataclass(frozen=True)
class Joined:
    """Hashes as arrays (n,)."""

    file: Any
    line: Any
    content: Any
    prompt: Any
    answer: Any


@dataclass(frozen=True)
class Twin:
    """Example `at` is (nearly) the same as the earlier example `of`; both index into Joined."""

    code: str
    at: int
    of: int
    similarity: float = 1.0


def exact_twins(rows: Joined) -> Iterator[Twin]:
    """W501 inside a file, E503 across files, W505 for one prompt with two answers, E506 for a prompt in two files."""
    first = _first_of(rows.content)
    for at in np.flatnonzero(first != np.arange(len(first))):
        of = int(first[at])
        yield Twin("W501" if rows.file[at] == rows.file[of] else "E503", int(at), of)
    unique = np.flatnonzero(first == np.arange(len(first)))
    same_prompt = unique[_first_of(rows.prompt[unique])]
    for at, of in zip(unique, same_prompt, strict=True):
        if at != of:
            yield Twin("W505" if rows.file[at] == rows.file[of] else "E506", int(at), int(of))


def _first_of(values: Any) -> Any:
    """For each value the index of its first occurrence."""
    first = np.arange(len(values))
    members = _repeated(values)
    if len(members):
        order = members[np.argsort(values[members], kind="stable")]
        starts = np.flatnonzero(np.r_[True, values[order[1:]] != values[order[:-1]]])
        first[order] = np.repeat(order[starts], np.diff(np.r_[starts, len(order)]))
    return first


def _repeated(values: Any) -> Any:
    """Indices of the values that occur more than once, in their order: mostly few, and all that need sorting with
    their places (sorting bare numbers is ten times as fast)."""
    ordered = np.sort(values)
    doubled = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(doubled):
        return np.empty(0, np.intp)
    at = np.minimum(np.searchsorted(doubled, values), len(doubled) - 1)
    return np.flatnonzero(doubled[at] == values)


class Bands:
    """The signatures of all examples, kept in a temporary folder until the pairs are asked for."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="edgeft-check-")
        folder = Path(self._folder.name)
        self._bands: list[IO[bytes]] = [(folder / f"band-{i}").open("w+b") for i in range(N_BANDS)]
        self._signatures: IO[bytes] = (folder / "signatures").open("w+b")

    def add(self, part: Part) -> None:
        """Append a part's signatures."""
        self._signatures.write(np.ascontiguousarray(part.signatures).tobytes())
        for i, file in enumerate(self._bands):
            file.write(np.ascontiguousarray(part.bands[:, i]).tobytes())

    def close(self) -> None:
        """Remove the folder."""
        for file in (*self._bands, self._signatures):
            file.close()
        self._folder.cleanup()

    def twins(self, rows: Joined, threshold: float = NEAR) -> Iterator[Twin]:
        """W502 inside a file, W504 across files: pairs whose signatures agree in `threshold` of their slots.

        Exact duplicates are not repeated here; each example is reported once, with its most similar partner.
        """
        best: dict[int, tuple[float, int]] = {}
        seen = np.empty(0, np.uint64)
        for file in self._bands:
            pairs = _neighbours(_read(file, np.uint64))
            pairs = pairs[~np.isin(pairs, seen, assume_unique=True)]
            seen = np.concatenate([seen, pairs])
            for block in np.array_split(pairs, len(pairs) // PAIRS_AT_ONCE + 1):
                of, at = (block >> np.uint64(32)).astype(np.int64), (block & np.uint64(0xFFFFFFFF)).astype(np.int64)
                other = rows.content[of] != rows.content[at]
                of, at = of[other], at[other]
                similar = (self._rows(of) == self._rows(at)).mean(axis=1) if len(of) else np.empty(0)
                for i in np.flatnonzero(similar >= threshold):
                    if similar[i] > best.get(int(at[i]), (0.0, 0))[0]:
                        best[int(at[i])] = (float(similar[i]), int(of[i]))
        for example in sorted(best):
            similarity, twin = best[example]
            code = "W502" if rows.file[example] == rows.file[twin] else "W504"
            yield Twin(code, example, twin, similarity)

    def _rows(self, which: Any) -> Any:
        """Signatures of some examples, read in the order they lie on disk."""
        wanted, back = np.unique(which, return_inverse=True)
        rows = np.empty((len(wanted), N_PERM), np.uint32)
        for i, at in enumerate(wanted):
            self._signatures.seek(int(at) * N_PERM * 4)
            rows[i] = np.frombuffer(self._signatures.read(N_PERM * 4), np.uint32)
        return rows[back]


def _read(file: IO[bytes], dtype: Any) -> Any:
    file.flush()
    file.seek(0)
    return np.fromfile(file, dtype)


def _neighbours(keys: Any) -> Any:
    """Pairs (earlier << 32 | later) inside each bucket: each member with the first and with the one before it."""
    members = _repeated(keys)
    order = members[np.argsort(keys[members], kind="stable")].astype(np.uint64)
    same = keys[order[1:]] == keys[order[:-1]]
    later, before = order[1:][same], order[:-1][same]
    first = _first_of(keys)[later.astype(np.int64)].astype(np.uint64)
    return np.unique(np.concatenate([before << np.uint64(32) | later, first << np.uint64(32) | later]))
