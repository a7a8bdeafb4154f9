"""One batch of lines, in a worker process: what is wrong with each, and the numbers the whole needs.

Only what is small leaves here: findings up to a cap (all are counted), 8-byte hashes, MinHash signatures.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import orjson

from edgeft.data.check.structure import conversation_problems, newer_row, plain_turns, role_problems
from edgeft.data.check.text import text_problems
from edgeft.data.check.tools import schema_mismatch
from edgeft.data.formats import FORMATS, Unreadable
from edgeft.data.pii import may_hold_personal_data

SHOWN_PER_BATCH = 200
LABEL_CHARS = 64
LABELS_PER_BATCH = 5000
SAMPLE_CHARS = 4000
SAMPLED_LINES = 8
N_PERM, N_BANDS, SEED = 64, 16, 42
GOLDEN = np.uint64(0x9E3779B97F4A7C15)

DIGIT = re.compile(rb"[0-9]")
ECHO_CHARS = 20
SYSTEM = ("system", "developer")
WHITE = b" \t\n\r\x0c"
TURN = "\v"  # stands between turns where several are one text; white space to split, of str and of bytes
# Letters of languages that put no space between words: each counts as one.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
PENDING = 64  # texts whose words are hashed together: few, so that they still lie in the processor's cache

Problem = tuple[str, str]


@dataclass(frozen=True)
class Options:
    """What every batch is examined with. `schema`: JSON Schema (text) answers must fit; `near`: make signatures."""

    format: str = "chat"
    schema: str | None = None
    near: bool = True
    sampled: bool = False  # look for personal data in some lines only
    samples: int = 64  # texts kept of each batch to tell the language from
    personal: int = 250  # texts kept of each batch to search for personal data


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
    answer_chars: Counter[int] = field(default_factory=Counter)  # answers by the bits of their length
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
    except json.JSONDecodeError as wrong:  # in the words of every other reader
        return None, [("E101", f"{wrong.msg} at column {wrong.colno}"[:120])]
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
        self.rows: list[tuple[int, int, bytes, bytes]] = []  # line, characters and hashes
        self.shapes: dict[tuple[str, ...], int] = defaultdict(int)  # roles in their order
        self.words: list[list[bytes]] = []
        self.n_words: list[int] = []
        self.hashes: list[Any] = []

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
        else:
            if _doubled(raw, row):
                self.report(line, [("E104", "")])
            if b'"tool' in raw or b'"function' in raw:
                row, found = newer_row(row)
                self.report(line, found)
        self.part.n_examples += 1
        plain = plain_turns(row)
        if plain is not None:
            roles, texts = plain
            problems = list(role_problems(roles) or ())
        else:
            problems = conversation_problems(row)
            messages = row.get("messages")
            if not isinstance(messages, list):
                self.report(line, problems)
                return
            said = [message for message in messages if isinstance(message, dict)]
            texts = [_text(message.get("content")) for message in said]
            roles = tuple([_role(message) for message in said])
        answer = texts[-1] if roles and roles[-1] == "assistant" else ""
        problems += text_problems(raw, texts, answer)
        self.shapes[roles] += 1
        self.part.n_chars += sum(map(len, texts))
        if answer:
            problems += self.answer(line, answer)
        if not self.options.sampled or line % SAMPLED_LINES == 0:
            self.personal(line, raw, texts)
        if len(self.part.sample) < self.options.samples:
            spoken = [text for role, text in zip(roles, texts, strict=True) if role != "system"]
            self.part.sample.append((line, "\n".join(spoken)[:SAMPLE_CHARS]))
        problems += self.hash(line, roles, texts, None if plain is not None else row)
        if problems:
            self.report(line, problems)

    def answer(self, line: int, answer: str) -> list[Problem]:
        """Count the answer as a label or as JSON; what the schema says against it."""
        part = self.part
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
                return [("E705", what)]
        return []

    def personal(self, line: int, raw: bytes, texts: list[str]) -> None:
        part = self.part
        if len(part.personal) < self.options.personal and (b"@" in raw or DIGIT.search(raw) or b"www." in raw):
            joined = "\n".join(texts)[:SAMPLE_CHARS]
            if may_hold_personal_data(joined):
                part.personal.append((line, joined))

    def hash(self, line: int, roles: tuple[str, ...], texts: list[str], row: Any) -> list[Problem]:
        """Hashes of prompt and answer, case and white space aside, and the words of the signature. `row` is given
        where the messages hold more than role and text."""
        lower = TURN.join(texts).lower()
        if not lower.isascii():  # bytes.translate knows the white space of ASCII only
            lower = TURN.join(["".join(text.split()) for text in lower.split(TURN)])
        said = lower.encode(errors="replace").translate(None, WHITE)
        prompt, _, answer = said.rpartition(TURN.encode())
        if not roles or roles[-1] != "assistant":
            prompt, answer = said, b""
        echo = (
            len(answer) > ECHO_CHARS and prompt.endswith(answer) and prompt[: -len(answer)][-1:] in (b"", TURN.encode())
        )
        chars = len(answer) and len(texts[-1])
        if row is not None and (more := _beside(row)):
            answer += b"\x1e" + more
        key, has_user, has_system = _of_roles(roles)
        if not has_user:  # no question: nothing to compare questions by
            prompt += b"\x1e" + answer
        asked = hashlib.blake2b(key + prompt, digest_size=8).digest()
        self.rows.append((line, chars, asked, hashlib.blake2b(answer, digest_size=8).digest()))
        if self.options.near:
            if has_system:
                texts = [text for role, text in zip(roles, texts, strict=True) if role not in SYSTEM]
                lower = TURN.join(texts).lower()
            self.words.append(words_of(lower))
            if len(self.words) == PENDING:
                self.hash_words()
        return [("W710", "")] if echo else []

    def hash_words(self) -> None:
        self.n_words += map(len, self.words)
        self.hashes.append(word_hashes(self.words))
        self.words.clear()

    def arrays(self) -> None:
        """Put what was collected line by line into the part."""
        part, rows = self.part, self.rows
        for roles, n in self.shapes.items():
            part.turns[len(roles)] += n
            for role in roles:
                part.roles[role] += n
        part.lines = np.array([row[0] for row in rows], np.uint32)
        bits = np.frexp(np.array([row[1] for row in rows], np.float64))[1]
        part.answer_chars = Counter(bits.tolist())
        part.prompt = np.frombuffer(b"".join([row[2] for row in rows]), np.uint64)
        part.answer = np.frombuffer(b"".join([row[3] for row in rows]), np.uint64)
        part.content = mixed(part.prompt * GOLDEN + part.answer)
        if self.options.near:
            self.hash_words()
            part.signatures, part.bands = signatures(np.concatenate(self.hashes), self.n_words)


def mixed(values: Any) -> Any:
    """The finalizer of MurmurHash3 (Appleby) on uint64: every bit of the input reaches every bit of the result."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def words_of(text: str) -> list[bytes]:
    """The words of a text in lower case, as UTF-8."""
    if not text.isascii():
        text = UNSPACED.sub(r" \g<0> ", " ".join(text.split()))
    return text.encode(errors="replace").split()


def word_hashes(texts: list[list[bytes]]) -> Any:
    """(N,) uint64: hashes of the words of several texts, one behind the other."""
    from rensa import RMinHash

    n_words = sum(map(len, texts))
    return np.fromiter(chain.from_iterable(RMinHash.hash_token_sets(texts)), np.uint64, n_words)


def signatures(hashes: Any, n_words: list[int]) -> tuple[Any, Any]:
    """MinHash signatures (n, N_PERM) uint32 of the words and word pairs of n texts, and one key per LSH band
    (n, N_BANDS) uint64. `hashes` (N,) uint64 are those of the words of all texts, `n_words` how many each has.

    Sixteen bands of four rows: a pair of Jaccard similarity s shares a band with 1 - (1 - s**4)**16
    (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2): 0.9998 at 0.8, 0.64 at 0.5.
    """
    from rensa import RMinHash

    if not n_words:
        return np.empty((0, N_PERM), np.uint32), np.empty((0, N_BANDS), np.uint64)
    counts = np.array(n_words, np.uint64)
    ends = np.cumsum(counts)
    tokens = np.empty((len(hashes), 2), np.uint64)
    tokens[:, 0] = hashes
    tokens[:-1, 1] = mixed(hashes[:-1] * GOLDEN + hashes[1:])
    last = ends[counts > 0].astype(np.int64) - 1
    tokens[last, 1] = hashes[last]  # a text's last word begins no pair: it stands twice
    offsets = np.concatenate([np.zeros(1, np.uint64), 2 * ends])
    digests = RMinHash.digest_matrix_from_flat_token_hashes(tokens.ravel(), offsets, N_PERM, SEED)
    matrix = np.array(digests.to_rows(), np.uint32)
    halves = matrix.view(np.uint64).reshape(len(matrix), N_BANDS, 2)
    return matrix, mixed(halves[:, :, 0] * GOLDEN + halves[:, :, 1])


@lru_cache(maxsize=4096)
def _of_roles(roles: tuple[str, ...]) -> tuple[bytes, bool, bool]:
    """The roles as a key, whether a user speaks, whether there is a system message."""
    key = "\x1f".join(roles).encode(errors="replace") + b"\x1d"
    return key, "user" in roles, any(role in SYSTEM for role in roles)


def _role(message: dict[str, Any]) -> str:
    role = message.get("role")
    return role if isinstance(role, str) else ""


def _beside(row: dict[str, Any]) -> bytes:
    """What makes answers differ beside their text: calls, and the rejected answer."""
    calls = [m["tool_calls"] for m in row["messages"] if isinstance(m, dict) and m.get("tool_calls")]
    return _encoded([calls, row.get("rejected")]) if calls or "rejected" in row else b""


def _doubled(raw: bytes, row: Any) -> bool:
    """Whether an object of the line has a key twice. Counted first: the exact test is slow."""
    messages = row.get("messages")
    n = len(messages) if isinstance(messages, list) else 0
    if len(row) == 1 and raw.count(b'":') == 1 + 2 * n:  # one key, and two in each message
        return False
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
