"""One batch of lines, in a worker process: what is wrong with each, and the numbers the whole needs.

Only what is small leaves here: findings up to a cap (all are counted), 8-byte hashes, MinHash signatures.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import orjson

from edgeft.data.check.structure import conversation_problems
from edgeft.data.check.text import text_problems
from edgeft.data.check.tools import schema_mismatch
from edgeft.data.formats import FORMATS, Unreadable
from edgeft.data.pii import may_hold_personal_data

SHOWN_PER_BATCH = 200
LABEL_CHARS = 64
LABELS_PER_BATCH = 5000
SAMPLES_PER_BATCH = 64
PERSONAL_PER_BATCH = 250
SAMPLE_CHARS = 4000
SAMPLED_LINES = 8
N_PERM, N_BANDS, SEED = 64, 16, 42

DIGIT = re.compile(rb"[0-9]")
ECHO_CHARS = 20
SYSTEM = ("system", "developer")

Problem = tuple[str, str]


@dataclass(frozen=True)
class Options:
    """What every batch is examined with. `schema`: JSON Schema (text) answers must fit; `near`: make signatures."""

    format: str = "chat"
    schema: str | None = None
    near: bool = True
    sampled: bool = False  # look for personal data in some lines only


@dataclass
class Part:
    """What one batch gave. Lines are counted from the batch's start (0) until the engine adds where it begins."""

    n_lines: int = 0
    n_examples: int = 0
    findings: list[tuple[str, int, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lines: Any = None  # (n,) uint32
    content: Any = None  # (n,) uint64: hash of every turn, case and white space aside
    prompt: Any = None  # (n,) uint64
    answer: Any = None  # (n,) uint64
    answer_chars: Any = None  # (n,) uint32
    bands: Any = None  # (n, N_BANDS) uint64
    signatures: Any = None  # (n, N_PERM) uint32
    labels: Counter[str] = field(default_factory=Counter)
    label_lines: dict[str, int] = field(default_factory=dict)
    n_json: int = 0
    not_json: list[int] = field(default_factory=list)
    is_json: list[int] = field(default_factory=list)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    sample: list[tuple[int, str]] = field(default_factory=list)
    personal: list[tuple[int, str]] = field(default_factory=list)  # lines that may hold personal data
    n_chars: int = 0


def examine_lines(lines: Iterable[bytes], options: Options) -> Part:
    """Examine JSON lines (without their newlines); blank ones count as lines only."""
    return _Batch(options).run((at, raw, None) for at, raw in enumerate(lines))


def examine_rows(rows: Iterable[tuple[int, Any]], options: Options) -> Part:
    """Examine rows already parsed, or the Unreadable that stands for one; their lines are the file's."""
    return _Batch(options).run((line, b"", row) for line, row in rows)


def parse(raw: bytes) -> tuple[Any, list[Problem]]:
    """The line's value and what is wrong with it as JSON. A value comes with problems when it can be read still."""
    try:
        return orjson.loads(raw), []
    except orjson.JSONDecodeError as error:
        return _parse_slowly(raw, error)


def _parse_slowly(raw: bytes, error: orjson.JSONDecodeError) -> tuple[Any, list[Problem]]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as wrong:
        return None, [("E102", f"byte {wrong.start}")]
    odd: list[str] = []
    try:
        value = json.loads(text, parse_constant=lambda name: odd.append(name))
    except RecursionError:
        return None, [("E101", "nested too deeply")]
    except ValueError:
        return None, [("E101", f"{error.msg} at column {error.colno}"[:120])]
    if odd:
        return None, [("E105", odd[0])]
    if "\\ud" in text.lower():
        return None, [("E110", "")]
    return value, []


class _Batch:
    """The examination of one batch; `run` is its only door."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.part = Part()
        self.shape = next(known for known in FORMATS if known.name == options.format)
        self.rows: list[tuple[int, int, bytes, bytes, bytes]] = []
        self.tokens: list[list[str]] = []

    def run(self, records: Iterator[tuple[int, bytes, Any]]) -> Part:
        part = self.part
        for line, raw, row in records:
            part.n_lines += 1
            if row is None:
                if not raw or raw.isspace():
                    continue
                row, problems = parse(raw.removeprefix(b"\xef\xbb\xbf") if line == 0 else raw)
                if problems:
                    self.report(line, problems)
                    continue
            elif isinstance(row, Unreadable):
                self.report(line, [(_code_of(row), str(row)[:120])])
                continue
            else:
                raw = _encoded(row)
            self.example(line, raw, row)
        self.arrays()
        return part

    def report(self, line: int, problems: Iterable[Problem]) -> None:
        part = self.part
        for code, detail in problems:
            part.counts[code] += 1
            if part.counts[code] <= SHOWN_PER_BATCH:
                part.findings.append((code, line, detail))

    def example(self, line: int, raw: bytes, row: Any) -> None:
        part = self.part
        if not isinstance(row, dict):
            inner = isinstance(row, str) and row.lstrip()[:1] in ("{", "[")
            self.report(line, [("E107", "")] if inner else [("E103", type(row).__name__)])
            return
        if self.shape.name != "chat":
            try:
                row = self.shape.read(row, Counter())[0]
            except (Unreadable, IndexError) as error:
                self.report(line, [("E108", str(error)[:120])])
                return
        elif _doubled(raw, row):
            self.report(line, [("E104", "")])
        part.n_examples += 1
        problems = conversation_problems(row)
        if problems:
            self.report(line, problems)
        messages = row.get("messages")
        if not isinstance(messages, list):
            return
        said = [(m.get("role"), _text(m.get("content"))) for m in messages if isinstance(m, dict)]
        texts = [text for _, text in said]
        words = [text.lower().split() for text in texts]
        is_answer = bool(said) and said[-1][0] == "assistant"
        answer = texts[-1] if is_answer else ""
        self.report(line, text_problems(raw, texts, answer, words[-1] if is_answer else []))
        self.count(line, said, answer)
        if not self.options.sampled or line % SAMPLED_LINES == 0:
            self.personal(line, raw, texts)
        self.hash(line, row, [role for role, _ in said], words, len(answer))

    def count(self, line: int, said: list[tuple[Any, str]], answer: str) -> None:
        part = self.part
        part.turns[len(said)] += 1
        for role, text in said:
            part.roles[role if isinstance(role, str) else ""] += 1
            part.n_chars += len(text)
        if len(part.sample) < SAMPLES_PER_BATCH:
            part.sample.append((line, "\n".join(text for role, text in said if role != "system")[:SAMPLE_CHARS]))
        if not answer:
            return
        if len(answer) <= LABEL_CHARS and "\n" not in answer and len(part.labels) < LABELS_PER_BATCH:
            part.labels[answer] += 1
            part.label_lines.setdefault(answer, line)
        value = None
        if answer[0] in "{[":
            try:
                value = orjson.loads(answer)
            except (orjson.JSONDecodeError, UnicodeEncodeError):
                pass
        if value is not None:
            part.n_json += 1
            if len(part.is_json) < SHOWN_PER_BATCH:
                part.is_json.append(line)
        elif len(part.not_json) < SHOWN_PER_BATCH:
            part.not_json.append(line)
        if self.options.schema is not None:
            what = "not JSON" if value is None else schema_mismatch(self.options.schema, value)
            if what:
                self.report(line, [("E705", what)])

    def personal(self, line: int, raw: bytes, texts: list[str]) -> None:
        part = self.part
        if len(part.personal) < PERSONAL_PER_BATCH and (b"@" in raw or DIGIT.search(raw) or b"www." in raw):
            joined = "\n".join(texts)[:SAMPLE_CHARS]
            if may_hold_personal_data(joined):
                part.personal.append((line, joined))

    def hash(self, line: int, row: Any, roles: list[Any], words: list[list[str]], answer_chars: int) -> None:
        """Hashes of prompt and answer, words for the signature. `words` are the lower-case words of each turn."""
        is_answer = bool(roles) and roles[-1] == "assistant"
        before = len(roles) - is_answer
        plain = [" ".join(turn) for turn in words]
        prompt = "\x1e".join([f"{role}\x1f{text}" for role, text in zip(roles[:before], plain, strict=False)])
        answer = plain[-1] if is_answer else ""
        if len(answer) > ECHO_CHARS and before and plain[before - 1] == answer:
            self.report(line, [("W710", "")])
        if "user" not in roles[:before]:  # no question: nothing to compare questions by
            prompt += "\x1e" + answer
        calls = [m["tool_calls"] for m in row["messages"] if isinstance(m, dict) and m.get("tool_calls")]
        if calls or "rejected" in row:
            answer += "\x1e" + _encoded([calls, row.get("rejected")]).decode(errors="replace")
        p = hashlib.blake2b(prompt.encode(errors="replace"), digest_size=8).digest()
        a = hashlib.blake2b(answer.encode(errors="replace"), digest_size=8).digest()
        self.rows.append((line, answer_chars, p, a, hashlib.blake2b(p + a, digest_size=8).digest()))
        if self.options.near:
            spoken = [w for role, turn in zip(roles, words, strict=True) if role not in SYSTEM for w in turn]
            self.tokens.append(spoken + list(map(" ".join, pairwise(spoken))))

    def arrays(self) -> None:
        part, rows = self.part, self.rows
        part.lines = np.array([row[0] for row in rows], np.uint32)
        part.answer_chars = np.array([row[1] for row in rows], np.uint32)
        part.prompt = np.frombuffer(b"".join(row[2] for row in rows), np.uint64)
        part.answer = np.frombuffer(b"".join(row[3] for row in rows), np.uint64)
        part.content = np.frombuffer(b"".join(row[4] for row in rows), np.uint64)
        if self.options.near:
            part.signatures, part.bands = signatures(self.tokens)


def signatures(tokens: list[list[str]]) -> tuple[Any, Any]:
    """MinHash signatures (n, N_PERM) uint32 and one key per LSH band (n, N_BANDS) uint64.

    Sixteen bands of four rows: a pair of Jaccard similarity s shares a band with 1 - (1 - s**4)**16
    (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2): 0.9998 at 0.8, 0.64 at 0.5.
    """
    from rensa import RMinHash

    if not tokens:
        return np.empty((0, N_PERM), np.uint32), np.empty((0, N_BANDS), np.uint64)
    known = [_utf8(words) for words in tokens]
    rows = RMinHash.digest_matrix_from_token_sets(known, num_perm=N_PERM, seed=SEED).to_rows()
    matrix = np.array(rows, np.uint32)
    halves = matrix.view(np.uint64).reshape(len(matrix), N_BANDS, 2)
    keys = halves[:, :, 0] * np.uint64(0x9E3779B97F4A7C15) ^ (halves[:, :, 1] + np.uint64(0x632BE59BD9B4E019))
    return matrix, keys * np.uint64(0xFF51AFD7ED558CCD)


def _utf8(words: list[str]) -> list[str]:
    """Rust has no lone surrogates."""
    try:
        "".join(words).encode()
    except UnicodeEncodeError:
        return [word.encode(errors="replace").decode() for word in words]
    return words


def _doubled(raw: bytes, row: Any) -> bool:
    """Whether an object of the line has a key twice. Counted first: the exact test is slow."""
    messages = row.get("messages")
    n = len(messages) if isinstance(messages, list) else 0
    if raw.count(b'"messages"') < 2 and raw.count(b'"role"') <= n and raw.count(b'"content"') <= n:
        return False
    found = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        if len({name for name, _ in items}) < len(items):
            found.append(True)

    try:
        json.loads(raw.decode("utf-8-sig"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return False
    return bool(found)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        found = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        return "".join(found)
    return ""


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except (orjson.JSONEncodeError, RecursionError):
        try:
            return json.dumps(value, default=str).encode()
        except (ValueError, TypeError, RecursionError):
            return b""


def _code_of(row: Unreadable) -> str:
    text = str(row)
    return "E102" if text.startswith("not UTF-8") else "E101" if text.startswith("not JSON") else "E103"
