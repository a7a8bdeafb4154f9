"""`edgeft data check`: files in, findings and numbers out, on all cores, in bounded memory.

A plain JSON Lines file is cut into byte ranges that end at a line; anything else is read here and handed on
in batches. Batches are examined in worker processes; what concerns several lines is found here from hashes.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.data import formats, reading, sources
from edgeft.data.check.codes import Finding
from edgeft.data.check.dataset import dataset_findings
from edgeft.data.check.duplicates import Bands, Hashes, Joined, Twin, exact_twins
from edgeft.data.check.examine import Options, Part, examine_lines, examine_rows
from edgeft.data.encodings import AUTO, MIXED, UTF8, encoding_of
from edgeft.errors import DataError
from edgeft.machine.cores import usable_cores

CHUNK_BYTES = 4 << 20
BATCH_ROWS = 2000
SMALL_BYTES = 8 << 20  # below this, starting worker processes costs more than it gives
THOROUGH_BYTES = 64 << 20  # up to here every line is searched for personal data
SHOWN_PER_CODE = 1000
SAMPLE_EXAMPLES = 1000
PERSONAL_EXAMPLES = 2000


@dataclass
class Job:
    """What is checked: files (splits) and how. `near`: search near duplicates. `workers`: processes."""

    paths: list[Path]
    format: str | None = None
    columns: dict[str, str] | None = None
    schema: str | None = None
    near: bool = True
    pii: bool = True
    encoding: str = AUTO
    workers: int = field(default_factory=usable_cores)


@dataclass
class FileSummary:
    """Numbers of one file; `labels` are short answers and how often each was given."""

    path: Path
    format: str
    encoding: str = UTF8
    n_bytes: int = 0
    n_lines: int = 0
    n_examples: int = 0
    n_chars: int = 0
    n_json: int = 0
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    label_lines: dict[str, int] = field(default_factory=dict)
    is_json: list[int] = field(default_factory=list)
    not_json: list[int] = field(default_factory=list)
    sample: list[tuple[int, str]] = field(default_factory=list)
    personal: list[tuple[int, str]] = field(default_factory=list)
    languages: Counter[str] = field(default_factory=Counter)
    answer_chars: Counter[int] = field(default_factory=Counter)  # by power of two
    tokens: dict[str, Any] = field(default_factory=dict)


@dataclass
class Checked:
    """The result: findings (at most SHOWN_PER_CODE a code), how many there are of each, numbers per file."""

    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    files: list[FileSummary] = field(default_factory=list)
    doubled: dict[str, set[int]] = field(default_factory=dict)  # lines --fix drops as duplicates, by file

    def add(self, code: str, path: Path, line: int, detail: str = "", n: int = 1) -> None:
        self.counts[code] += n
        if self.counts[code] - n < SHOWN_PER_CODE:
            self.findings.append(Finding(code, str(path), line, detail))

    @property
    def n_errors(self) -> int:
        return sum(n for code, n in self.counts.items() if code.startswith("E"))


def check(job: Job, log: Log) -> Checked:
    """Check the files. Raises DataError when one cannot be read at all."""
    checked, hashes = Checked(), Hashes()
    with ExitStack() as stack:
        bands = Bands() if job.near else None
        if bands is not None:
            stack.callback(bands.close)
        submit = _submitter(job, stack)
        for number, path in enumerate(job.paths):
            summary = _check_file(job, path, number, checked, hashes, bands, submit, log)
            checked.files.append(summary)
        rows = hashes.joined()
        twins = exact_twins(rows)
        _report_twins(twins, rows, job, checked)
        if bands is not None:
            log.say("looking for near duplicates")
            _report_twins(bands.twins(rows), rows, job, checked)
    for summary in checked.files:
        for code, line, detail in dataset_findings(summary, job.pii):
            checked.add(code, summary.path, line, detail)
    checked.findings.sort(key=lambda found: (found.code[0] != "E", found.code, found.path, found.line))
    return checked


Submit = Callable[[Callable[..., Part], Any, Options], "Future[Part]"]


def _submitter(job: Job, stack: ExitStack) -> Submit:
    """A function that runs a batch: in a pool for much data, at once for little."""
    if job.workers > 1 and (_size(job) > SMALL_BYTES or sources.STDIN in job.paths):
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        method = "forkserver" if os.name == "posix" else "spawn"
        context = get_context(method)
        if method == "forkserver":  # imported once, and held in memory once
            context.set_forkserver_preload(["edgeft.data.check.examine", "ftfy.badness", "rensa"])
        pool = stack.enter_context(ProcessPoolExecutor(job.workers, context))
        return pool.submit

    def at_once(function: Callable[..., Part], argument: Any, options: Options) -> "Future[Part]":
        future: Future[Part] = Future()
        future.set_result(function(argument, options))
        return future

    return at_once


def _size(job: Job) -> int:
    return sum(path.stat().st_size for path in job.paths if path != sources.STDIN and path.is_file())


def _check_file(
    job: Job,
    path: Path,
    number: int,
    checked: Checked,
    hashes: Hashes,
    bands: Bands | None,
    submit: Submit,
    log: Log,
) -> FileSummary:
    if path != sources.STDIN and not path.is_file():
        raise DataError(f"{path}: no such file")
    found = encoding_of(path, job.encoding)
    shape, ranged = _shape_of(job, path, found.name)
    n_batches = max(1, _size(job) // CHUNK_BYTES)
    options = Options(
        shape,
        job.schema,
        job.near,
        sampled=_size(job) > THOROUGH_BYTES,
        samples=max(1, SAMPLE_EXAMPLES // n_batches),
        personal=max(1, PERSONAL_EXAMPLES // n_batches),
    )
    summary = FileSummary(path, shape, found.name)
    if job.encoding == AUTO and found.name not in (UTF8, MIXED):
        checked.add("W111", path, 0, f"read as {found.name}")
    for line in found.lines:
        checked.add("W112", path, line, "read as Windows-1252")
    if path != sources.STDIN:
        summary.n_bytes = path.stat().st_size
    batches = _ranges(path) if ranged else _batches(job, path, found.name)
    function = _examine_range if ranged else examine_rows
    with log.progress(f"check {path.name}", summary.n_bytes, "bytes") as progress:
        waiting: list[tuple[int, Future[Part]]] = []
        for done_bytes, argument in batches:
            waiting.append((done_bytes, submit(function, argument, options)))
            while len(waiting) > 2 * job.workers:
                done, future = waiting.pop(0)
                _take(future.result(), ranged, number, checked, hashes, bands, summary)
                progress.update(min(done, summary.n_bytes))
        for done, future in waiting:
            _take(future.result(), ranged, number, checked, hashes, bands, summary)
            progress.update(min(done, summary.n_bytes))
    _file_findings(path, ranged, summary, checked)
    return summary


def _take(
    part: Part,
    ranged: bool,
    number: int,
    checked: Checked,
    hashes: Hashes,
    bands: Bands | None,
    summary: FileSummary,
) -> None:
    """Add one part. In a range, lines are counted from 0; elsewhere they are the file's own."""
    first = summary.n_lines + 1 if ranged else 0
    shown = Counter(code for code, _, _ in part.findings)
    for code, line, detail in part.findings:
        checked.add(code, summary.path, line + first, detail)
    for code, n in part.counts.items():
        checked.counts[code] += n - shown[code]
    hashes.add(number, first, part)
    if bands is not None:
        bands.add(part)
    for name in ("n_lines", "n_examples", "n_chars", "n_json", "roles", "turns", "answer_chars"):
        setattr(summary, name, getattr(summary, name) + getattr(part, name))
    if len(summary.labels) < SHOWN_PER_CODE * 10:
        summary.labels += part.labels
        for label, line in part.label_lines.items():
            summary.label_lines.setdefault(label, line + first)
    for name in ("is_json", "not_json"):
        lines: list[int] = getattr(summary, name)
        lines += [line + first for line in islice(getattr(part, name), max(0, SHOWN_PER_CODE - len(lines)))]
    for name, most in (("sample", SAMPLE_EXAMPLES), ("personal", PERSONAL_EXAMPLES)):
        texts: list[tuple[int, str]] = getattr(summary, name)
        texts += [(line + first, text) for line, text in getattr(part, name)[: max(0, most - len(texts))]]


def _shape_of(job: Job, path: Path, encoding: str) -> tuple[str, bool]:
    """The format's name, and whether the file can be cut into byte ranges."""
    plain = (
        encoding == UTF8
        and path != sources.STDIN
        and path.suffix not in (".gz", ".zst")
        and sources.container(path) == "jsonl"
    )
    if job.format or job.columns:
        return job.format or (
            "dpo" if "chosen" in (job.columns or {}) else "prompt-completion"
        ), plain and not job.columns
    if path == sources.STDIN:
        return "chat", False
    first = (
        list(islice(reading.rows(path, encoding), reading.DETECTION_ROWS))
        if sources.container(path) != "parquet"
        else []
    )
    first = first or list(islice(reading.rows(path, encoding), 1))
    shape = formats.detect([row for _, row in first])
    return (shape.name if shape else "chat"), plain


def _ranges(path: Path) -> Iterator[tuple[int, tuple[Path, int, int]]]:
    """(end, (path, start, end)) of ranges that end behind a newline."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 0
        while start < size:
            end = min(size, start + CHUNK_BYTES)
            if end < size:
                file.seek(end - 1)
                end += len(file.readline(sources.LONGEST_RECORD_BYTES)) - 1
            yield end, (path, start, end)
            start = end


def _examine_range(where: tuple[Path, int, int], options: Options) -> Part:
    path, start, end = where
    with path.open("rb") as file:
        file.seek(start)
        lines = file.read(end - start).split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return examine_lines(lines, options)


def _batches(job: Job, path: Path, encoding: str) -> Iterator[tuple[int, list[tuple[int, Any]]]]:
    mapper = reading.column_mapper(job.columns) if job.columns else None
    rows = reading.rows(path, encoding)
    done = 0
    while batch := list(islice(rows, BATCH_ROWS)):
        done += CHUNK_BYTES
        if mapper is not None:
            batch = [(n, mapper(row, Counter()) if isinstance(row, dict) else row) for n, row in batch]
        yield done, batch


def _file_findings(path: Path, ranged: bool, summary: FileSummary, checked: Checked) -> None:
    """What only the file as a whole shows: its mark, its end, its size."""
    if ranged and summary.n_bytes:
        with path.open("rb") as file:
            if file.read(3) == b"\xef\xbb\xbf":
                checked.add("W106", path, 1)
            file.seek(-1, os.SEEK_END)
            ended = file.read(1) == b"\n"
        broken = next(
            (
                f
                for f in checked.findings
                if f.code in ("E101", "E102") and (f.path, f.line) == (str(path), summary.n_lines)
            ),
            None,
        )
        if not ended and broken is not None:
            checked.findings.remove(broken)
            checked.counts[broken.code] -= 1
            checked.counts += Counter()
            checked.add("E109", path, summary.n_lines)
    if not summary.n_examples and not any(f.path == str(path) and f.code[0] == "E" for f in checked.findings):
        checked.add("E113", path, 0)
    elif summary.n_examples < 10:
        checked.add("I712", path, 0, f"{summary.n_examples}")


def _report_twins(twins: Iterator[Twin], rows: Joined, job: Job, checked: Checked) -> None:
    for twin in twins:
        path, other = job.paths[rows.file[twin.at]], job.paths[rows.file[twin.of]]
        line, of = int(rows.line[twin.at]), int(rows.line[twin.of])
        if twin.code == "W501":
            checked.doubled.setdefault(str(path), set()).add(line)
        if twin.code == "E503":  # the test file stays whole: the copy to learn from goes
            checked.doubled.setdefault(str(other), set()).add(of)
        alike = "" if twin.similarity == 1.0 else f", {math.floor(100 * twin.similarity)} % alike"
        where = f"line {of}" if path == other else f"{other}:{of}"
        checked.add(twin.code, path, line, where + alike)
