"""The training set of a recipe: several sources with weights, replay, a validation share, no duplicates.

Which examples are taken follows from the hash of their content and the seed, never from their place in a file.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from edgeft.console import Log
from edgeft.data import formats, reading
from edgeft.data.chat import SHOWN_PROBLEMS, Example, parse_line, read_chat
from edgeft.data.encodings import UTF8, marked_encoding
from edgeft.errors import DataError, DataRejected
from edgeft.extras import extra_needed
from edgeft.sections import Data, Source, Weighted

Find = Callable[[str], Path]
CHECK_PAGE = "check.html"
SHOWN_PLACES = 3  # of each error, when a run tells of it


@dataclass
class Mixed:
    """The examples of each split, and what was done to get them."""

    splits: dict[str, list[Example]]
    counts: dict[str, int] = field(default_factory=dict)


def mix(section: Data, find: Find, seed: int, log: Log) -> Mixed:
    """Read and mix the data; `find` turns a path of the section into one that exists.

    Raises DataError for lines that cannot be used, MissingExtra when near duplicates are asked for without the
    extra that finds them.
    """
    sources = [Weighted(path=section.train)] if isinstance(section.train, str) else section.train
    train = [read_source(source, find) for source in sources]
    test = read_source(Source(path=section.test), find)
    counts: dict[str, int] = {}
    _tell_older([*(example for part in train for example in part), *test], log)
    if isinstance(section.validation, str):
        validation = read_source(Source(path=section.validation), find)
    else:
        validation, train = _set_aside(train, section.validation, seed)
        counts["set_aside"] = len(validation)
    if section.dedupe != "none":
        before = sum(map(len, train))
        train = _without_duplicates(train, [*validation, *test], near=section.dedupe == "near")
        counts["duplicates"] = before - sum(map(len, train))
        log.say(f"data: {counts['duplicates']} of {before} training examples are duplicates and left out")
    mixed = [e for part, source in zip(train, sources, strict=True) for e in _weighted(part, source.weight, seed)]
    if section.replay is not None:
        share = section.replay.share
        general = _chosen(read_source(section.replay, find), round(len(mixed) * share / (1 - share)), seed)
        counts["replayed"] = len(general)
        mixed += general
        log.say(f"data: {len(general)} of {len(mixed)} training examples are replay")
    return Mixed({"train": mixed, "validation": validation, "test": test}, counts)


def _tell_older(examples: list[Example], log: Log) -> None:
    """Say once that tool data was read from an older form."""
    older = [example for example in examples if example.older]
    if older:
        log.say(
            f"data: the tool data of {len(older)} examples is in an older or packed form ({older[0].path}:"
            f"{older[0].line}: {older[0].older}); it is read as tool_calls, tools and role tool"
        )


def read_source(source: Source, find: Find) -> list[Example]:
    """The examples of one file, in any known format. Raises DataError naming every bad line."""
    path = find(source.path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    marked = _text(path) and marked_encoding(path)  # another encoding is left to read_chat, which says where
    if source.format is None and not source.columns and not marked:
        first = [row for _, row in islice(reading.rows(path), reading.DETECTION_ROWS)] if _text(path) else [{}]
        shape = formats.detect(first)
        if _text(path) and (shape is None or shape.name == "chat"):
            return read_chat(path)
    read = reading.read_examples(path, source.format, source.columns or None, marked or UTF8)
    examples, problems = [], []
    for line, example in read.examples:
        try:
            examples.append(parse_line(json.dumps(example), path, line))
        except DataError as error:
            problems.append(str(error))
    problems += [str(problem) for problem in read.problems]
    if problems:
        shown = problems[:SHOWN_PROBLEMS]
        raise DataError("\n".join([*shown, f"{len(problems)} lines cannot be used; see `edgeft data check {path}`"]))
    if not examples:
        raise DataError(f"{path}: no example in this file")
    return examples


def check_prepared(section: Data, folder: Path, places: Mapping[str, list[str]], log: Log) -> dict[str, int]:
    """Check the prepared files, write check.json and check.html beside them; returns the counts by code.

    `places` has the file and line each example of a split came from. Raises DataRejected when a code of `data.fatal`
    is found. Without the extra `data` nothing is checked, unless a code is fatal.
    """
    if not section.fatal and find_spec("rensa") is None:
        log.say("data: not checked; pip install 'edgeft[data]' for a report on its quality")
        return {}
    with extra_needed("data"):
        from edgeft.data.check.engine import Job, check
    from edgeft.data.check.codes import CODES
    from edgeft.data.check.html import html_report
    from edgeft.data.check.summary import as_dict

    job = Job([folder / f"{split}.jsonl" for split in places], "chat", pii=_wanted(section.fatal, "W708"))
    checked = check(job, log)
    report = as_dict(checked, folder)
    (folder / "check.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CHECK_PAGE).write_text(html_report(checked, folder, "../report/report.html"), encoding="utf-8")
    fatal = [found for found in checked.findings if _wanted(section.fatal, found.code)]
    if fatal:
        more = [f"… and {len(fatal) - SHOWN_PROBLEMS} more"] if len(fatal) > SHOWN_PROBLEMS else []
        shown = [_in_the_source(str(found), folder, places) for found in fatal[:SHOWN_PROBLEMS]]
        raise DataRejected("\n".join([*shown, *more, "are fatal by data.fatal"]))
    counts: dict[str, int] = report["counts"]
    for code, n in sorted(counts.items(), key=lambda item: ("EWI".find(item[0][0]), item[0])):
        log.say(f"data check: {CODES[code].severity} {code}, {n} times: {CODES[code].title}; {CODES[code].advice}")
        found_here = [found for found in checked.findings if found.code == code] if code.startswith("E") else []
        for found in found_here[:SHOWN_PLACES]:
            log.say("  " + _in_the_source(f"{found.path}:{found.line} ({found.detail})", folder, places))
    if counts:
        log.say(f"data check: file and line of each: {CHECK_PAGE} of stage data")
    return counts


def _in_the_source(text: str, folder: Path, places: Mapping[str, list[str]]) -> str:
    """`text` with lines of the prepared files as those of the files they were made of."""

    def source(match: re.Match[str]) -> str:
        split, line = match[1], int(match[2])
        return places[split][line - 1] if 0 < line <= len(places[split]) else match[0]

    return re.sub(rf"{re.escape(str(folder))}/({'|'.join(places)})\.jsonl:(\d+)", source, text)


def _wanted(codes: list[str], code: str) -> bool:
    return any(code.startswith(beginning) for beginning in codes)


def example_hash(example: Example) -> str:
    """sha256 hex of the example's canonical line: what an audit looks for."""
    return hashlib.sha256(example.canonical().encode(errors="surrogatepass")).hexdigest()


def _text(path: Path) -> bool:
    """Whether it can be plain chat JSONL; what cannot be decoded is left to read_chat, which says where."""
    return path.suffix not in (".json", ".csv", ".tsv", ".xlsx", ".parquet", ".txt", ".gz", ".zst")


def _chosen(examples: list[Example], n: int, seed: int) -> list[Example]:
    """`n` of the examples (all, if there are fewer), in their order."""
    if n >= len(examples):
        return examples
    ranked = sorted(
        range(len(examples)), key=lambda at: hashlib.sha256(f"{seed}{example_hash(examples[at])}".encode()).digest()
    )
    return [examples[at] for at in sorted(ranked[:n])]


def _weighted(examples: list[Example], weight: float, seed: int) -> list[Example]:
    times = int(weight)
    return examples * times + _chosen(examples, round(len(examples) * (weight - times)), seed)


def _set_aside(train: list[list[Example]], share: float, seed: int) -> tuple[list[Example], list[list[Example]]]:
    with extra_needed("data"):
        from edgeft.data.split import split_examples
    flat = [{"messages": example.messages} for part in train for example in part]
    places = iter(split_examples(flat, (1 - share, share, 0.0), seed=seed))
    validation: list[Example] = []
    rest: list[list[Example]] = []
    for part in train:
        here = [(example, next(places)) for example in part]
        validation += [example for example, place in here if place == "validation"]
        rest.append([example for example, place in here if place == "train"])
    if not validation:
        raise DataError(f"data.validation: a share of {share} of {len(flat)} examples is none; raise it or name a file")
    return validation, rest


def _without_duplicates(train: list[list[Example]], held_out: list[Example], *, near: bool) -> list[list[Example]]:
    """The training examples that are neither repeated nor (nearly) in `held_out`."""
    with extra_needed("data"):
        from edgeft.data.split import twins_of
    flat = [*held_out, *(example for part in train for example in part)]
    doubled = twins_of([{"messages": example.messages} for example in flat], near=near)
    at = len(held_out)
    kept = []
    for part in train:
        kept.append([example for number, example in enumerate(part, at) if number not in doubled])
        at += len(part)
    return kept
