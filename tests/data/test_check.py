# ruff: noqa: E501
"""`edgeft data check`: every planted defect is found under its code, clean lines have none."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeft.console import silent_log
from edgeft.data.check.codes import CODES
from edgeft.data.check.engine import Checked, Job, check
from edgeft.data.check.examine import Options, examine_lines, signatures, word_hashes, words_of
from edgeft.data.check.fix import fix_file
from edgeft.data.check.html import html_report
from edgeft.data.check.summary import as_dict
from edgeft.data.check.text import BOILERPLATE, BOILERPLATE_HINTS, REFUSAL_HINTS, REFUSALS
from edgeft.data.check.tokens import count_tokens
from tests.data.planted import WEATHER, bot, clean_lines, pair, planted_lines, row, sentence, user


def checked(tmp_path: Path, **files: list[bytes]) -> Checked:
    paths = []
    for name, lines in files.items():
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_bytes(b"".join(line + b"\n" for line in lines))
    return check(Job(paths, workers=1), silent_log())


def found(result: Checked) -> set[tuple[str, str, int]]:
    return {(Path(f.path).stem, f.code, f.line) for f in result.findings}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checked, dict[int, str | None]]:
    """All clean and planted lines in one shuffled file; the code planted in each line."""
    lines: list[tuple[str | None, bytes]] = [(None, line) for line in clean_lines()]
    lines += [(code, line) for code, some in planted_lines().items() for line in some]
    random.Random(7).shuffle(lines)
    folder = tmp_path_factory.mktemp("planted")
    result = checked(folder, data=[line for _, line in lines])
    return result, {number: code for number, (code, _) in enumerate(lines, 1)}


@pytest.mark.slow
def test_every_planted_line_is_reported(planted: tuple[Checked, dict[int, str | None]]) -> None:
    result, codes = planted
    reported = {(f.line, f.code) for f in result.findings}
    missing = [(line, code) for line, code in codes.items() if code and (line, code) not in reported]
    assert missing == []


@pytest.mark.slow
def test_no_error_and_no_warning_on_clean_lines(planted: tuple[Checked, dict[int, str | None]]) -> None:
    result, codes = planted
    clean = {line for line, code in codes.items() if code is None}
    assert len(clean) == 200
    assert [str(f) for f in result.findings if f.line in clean] == []


def labels(*counts: tuple[str, int]) -> list[bytes]:
    answers = [answer for answer, n in counts for _ in range(n)]
    return [row(user(sentence(("label", answers[0], i))), bot(answer)) for i, answer in enumerate(answers)]


def jsons(n: int, odd: bytes | None = None) -> list[bytes]:
    lines = [row(user(sentence(("json", i))), bot(json.dumps({"n": i}))) for i in range(n)]
    return lines + ([odd] if odd else [])


def talk(n: int, name: object) -> list[bytes]:
    return [pair(i, str(name)) for i in range(n)]


FRENCH = "Bonjour, je voudrais savoir quand le prochain train pour la ville de Lyon va partir ce soir"
ENGLISH = "Could you please tell me when the next train to the city of {} is going to leave this evening"
FOREIGN = [
    FRENCH, "Guten Tag, können Sie mir bitte sagen, wann der nächste Zug nach München abfährt",
    "Buenos días, quisiera saber cuándo sale el próximo tren para la ciudad de Sevilla esta noche",
    "Здравствуйте, скажите пожалуйста, когда отправляется следующий поезд в город Москву",
    "こんにちは、今夜の東京行きの次の電車は何時に出発しますか。どうか教えてくださいませんでしょうか。お願いします。",
]  # fmt: skip


def english(n: int) -> list[bytes]:
    places = ["Leeds", "York", "Bath", "Truro", "Derby", "Wells"]
    return [row(user(ENGLISH.format(f"{places[i % 6]} {i}")), bot(f"It leaves at {i} o'clock, sir.")) for i in range(n)]


def near(i: int) -> bytes:
    """The first line of talk with one word of its answer changed."""
    return pair(i, "near").replace(b"case", b"chapter", 1)


WESTERN = [
    "Größe und Fläche des schönen Gebäudes sind für uns nötig", "Où est la forêt où l'été fut passé, déjà vu à côté ?",
    "¿Dónde está el niño que comió mañana? ¡Qué año!", "Здравствуйте, скажите, когда отправляется следующий поезд",
    "明日の天気を教えてください。東京は晴れですか",
]  # fmt: skip
CODEPAGES = ["latin-1", "cp1252", "cp1252", "cp1251", "cp932"]


# code -> (a case's files, the file and line it must be reported at; line 0 for the whole file)
FILE_CASES: dict[str, Callable[[int], tuple[dict[str, list[bytes]], tuple[str, int]]]] = {
    "W106": lambda i: ({"a": [b"\xef\xbb\xbf" + pair(i, "W106"), *talk(i, "bom")]}, ("a", 1)),
    "W111": lambda i: ({"a": [row(user(WESTERN[i]), bot(WESTERN[i])).decode().encode(CODEPAGES[i])] * 12}, ("a", 0)),
    "W501": lambda i: ({"a": [*talk(5, "dup"), pair(i, "dup")]}, ("a", 6)),
    "W502": lambda i: ({"a": [*talk(5, "near"), near(i)]}, ("a", 6)),
    "E503": lambda i: ({"a": talk(5, "leak"), "b": [*talk(3, "other"), pair(i, "leak")]}, ("b", 4)),
    "W504": lambda i: ({"a": talk(5, "near"), "b": [*talk(3, "other"), near(i)]}, ("b", 4)),
    "W505": lambda i: ({"a": [*talk(5, "same"), pair(9, "x", question=sentence(("same", i)))]}, ("a", 6)),
    "E506": lambda i: ({"a": talk(5, "same"), "b": [pair(9, "x", question=sentence(("same", i)))]}, ("b", 1)),
    "W701": lambda i: ({"a": labels(("yes", 60 + i), ("no", 3))}, ("a", 0)),
    "W702": lambda i: ({"a": labels(("yes", 20), ("no", 20), (f"may be {i}", 1))}, ("a", 41)),
    "W703": lambda i: ({"a": [*english(40), row(user(FOREIGN[i]), bot("."))]}, ("a", 41)),
    "W704": lambda i: ({"a": jsons(40 + i, pair(i, "W704"))}, ("a", 41 + i)),
    "W709": lambda i: ({"a": labels(("card lost", 20), ("top up", 20), (["Card lost", "card_lost", "CARD LOST", "card-lost", "card lost."][i], 3))}, ("a", 41)),
    "W711": lambda i: ({"a": [*labels(*((f"answer {n}", 1) for n in range(120))), pair(i, "W711", answer=sentence(i, 5000))]}, ("a", 0)),
    "I712": lambda i: ({"a": talk(i + 1, "few")}, ("a", 0)),
    "E113": lambda i: ({"a": [b""] * i}, ("a", 0)),
    "W713": lambda i: ({"a": labels(("yes", 20 + i))}, ("a", 0)),
}  # fmt: skip


@pytest.mark.parametrize("code", FILE_CASES)
def test_defects_of_whole_files(code: str, tmp_path: Path) -> None:
    for i in range(5):
        files, (name, line) = FILE_CASES[code](i)
        (tmp_path / str(i)).mkdir()
        result = checked(tmp_path / str(i), **files)
        assert (name, code, line) in found(result), (i, result.findings)


def test_a_file_that_ends_inside_a_line(tmp_path: Path) -> None:
    for i in range(5):
        body = b"\n".join([*talk(5, "cut"), pair(i, "cut")[: -10 - i]])
        (tmp_path / "a.jsonl").write_bytes(body)
        result = check(Job([tmp_path / "a.jsonl"]), silent_log())
        assert found(result) >= {("a", "E109", 6)}
        assert result.counts["E101"] == 0


def test_rows_of_another_format(tmp_path: Path) -> None:
    bad = [
        b'{"instruction": 3, "output": "x"}',
        b'{"instruction": "x"}',
        b'{"output": "x"}',
        b"{}",
        b'{"instruction": null, "output": "x"}',
    ]
    good = [json.dumps({"instruction": sentence(i), "output": sentence((i, "o"))}).encode() for i in range(20)]
    assert found(checked(tmp_path, a=good + bad)) >= {("a", "E108", 21 + i) for i in range(5)}


def test_answers_that_do_not_fit_the_schema(tmp_path: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    bad = [b'{"n": "x"}', b"{}", b"[]", b"no", b"3"]
    lines = jsons(20) + [row(user(sentence(("s", i))), bot(text.decode())) for i, text in enumerate(bad)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    result = check(Job([tmp_path / "a.jsonl"], schema=schema, workers=1), silent_log())
    assert {f.line for f in result.findings if f.code == "E705"} == {21, 22, 23, 24, 25}


class Tokenizer:
    """One token a character; a template that refuses, loses or does not end what the text asks it to."""

    is_fast = True
    eos_token_id = ord("|")

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> str:
        texts = [turn["content"] for turn in conversation]
        if any("refuse" in text for text in texts):
            raise ValueError("roles must alternate")
        return "".join("" if "lose" in text else f"{text}\n" if "endless" in text else f"{text}|\n" for text in texts)

    def __call__(self, text: str, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": list(map(ord, text)), "offset_mapping": [(i, i + 1) for i in range(len(text))]}


@pytest.mark.parametrize(
    ("code", "make"),
    [
        ("W601", lambda i: row(user("hello"), bot("long " * (30 + i)))),
        ("E602", lambda i: row(user(f"refuse {i}"), bot("x"))),
        ("E603", lambda i: row(user(f"hello {i}"), bot(f"lose {i}"))),
        ("W604", lambda i: row(user("long " * (30 + i)), bot("x"))),
        ("E605", lambda i: row(user("hello"), bot(f"x{i}"), tools=[WEATHER])),
        ("E606", lambda i: row(user("hello"), bot(f"endless {i}"))),
    ],
)
def test_defects_under_a_tokenizer(code: str, make: Any, tmp_path: Path) -> None:
    clean = [row(user(f"hello {i}"), bot("world")) for i in range(10)]
    result = checked(tmp_path, a=clean + [make(i) for i in range(5)])
    count_tokens(Tokenizer(), 64, result.files[0], result, silent_log())
    codes = {"W601", "E602", "E603", "W604", "E605", "E606"}
    assert {(f.code, f.line) for f in result.findings if f.code in codes} == {(code, 11 + i) for i in range(5)}


@pytest.mark.slow
def test_every_code_is_planted(planted: tuple[Checked, dict[int, str | None]]) -> None:
    others = {"W112", "E108", "E109", "E705", "W601", "E602", "E603", "W604", "E605", "E606"}
    assert set(planted_lines()) | set(FILE_CASES) | others == set(CODES)
    assert len(CODES) >= 40


def test_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.data.check.engine.SMALL_BYTES", 0)
    monkeypatch.setattr("edgeft.data.check.engine.CHUNK_BYTES", 3000)
    lines = [line for some in planted_lines().values() for line in some] + clean_lines()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    many = check(Job([tmp_path / "a.jsonl"], workers=2), silent_log())
    monkeypatch.undo()
    one = check(Job([tmp_path / "a.jsonl"], workers=1), silent_log())
    assert many.counts == one.counts
    assert found(many) - {("a", "W708", f.line) for f in many.findings} == found(one) - {
        ("a", "W708", f.line) for f in one.findings
    }


def test_fix_drops_and_cleans_and_leaves_the_rest(tmp_path: Path) -> None:
    good = [pair(i, "good") for i in range(3)]
    messy = row(user("caf\u200b\u00c3\u00a9 question"), bot(" schÃ¶n \x07 "))
    result = checked(tmp_path, a=[good[0], b"{", good[1], good[0], messy, good[2]])
    fixed = fix_file(result.files[0], result, None)
    assert (fixed.kept, fixed.dropped, fixed.changed) == (4, 2, 1)
    written = [json.loads(line) for line in fixed.path.read_text().splitlines()]
    assert written == [json.loads(good[0]), json.loads(good[1]), written[2], json.loads(good[2])]
    assert [m["content"] for m in written[2]["messages"]] == ["café question", "schön"]
    assert check(Job([fixed.path]), silent_log()).n_errors == 0


@pytest.mark.slow
def test_reports_are_plain_data_and_safe_html(planted: tuple[Checked, dict[int, str | None]]) -> None:
    result, _ = planted
    shown = json.loads(json.dumps(as_dict(result)))
    assert shown["errors"] == result.n_errors > 0
    page = html_report(result, report="../report/report.html")
    assert '<a href="../report/report.html">' in page
    assert "prefers-color-scheme: dark" in page
    assert "<script" not in page
    assert "http://" not in page.lower()
    assert "src=" not in page
    assert "<|im_start|>" not in page


def test_signatures_estimate_jaccard() -> None:
    """Oracle: the Jaccard similarity of the token sets; 64 slots have a standard error of at most 0.0625."""
    picker = random.Random(3)
    for share in (0.0, 0.3, 0.6, 0.9, 1.0):
        both = [f"t{picker.random()}" for _ in range(int(400 * share))]
        texts = [both + [f"u{picker.random()}" for _ in range(400 - len(both))] for _ in range(2)]
        words = [words_of(" ".join(text)) for text in texts]
        rows, _ = signatures(word_hashes(words), list(map(len, words)))
        one, other = ({*text, *pairwise(text)} for text in texts)
        assert abs((rows[0] == rows[1]).mean() - len(one & other) / len(one | other)) < 0.2


def test_texts_without_words_or_spaces_have_signatures() -> None:
    texts = ["", "one", "明日の東京の天気を教えてください", "明日の大阪の天気を教えてください", "\ud800"]
    words = [words_of(text) for text in texts]
    rows, bands = signatures(word_hashes(words), list(map(len, words)))
    assert len(rows) == len(bands) == 5
    assert 0.4 < (rows[2] == rows[3]).mean() < 1.0


def test_every_phrase_is_found_by_a_hint() -> None:
    for phrases, hints in ((REFUSALS, REFUSAL_HINTS), (BOILERPLATE, BOILERPLATE_HINTS)):
        assert [p for p in phrases if not any(hint in p for hint in hints)] == []


QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEYS = st.sampled_from(
    ["messages", "role", "content", "tool_calls", "function", "name", "arguments", "id", "tools", "parameters", "type",
     "rejected", "weight", "tool_call_id", "properties", "$ref", "parallel_tool_calls", "x"]
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    | st.sampled_from(["user", "assistant", "system", "tool", "text", "object", "{}", "[", "<|x|>", "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)  # fmt: skip
MESSAGES = st.lists(st.dictionaries(KEYS, VALUES, max_size=5) | VALUES, max_size=4)


@pytest.mark.slow
@QUICK
@given(st.lists(st.binary(max_size=60), max_size=3), st.dictionaries(KEYS, VALUES, max_size=5), MESSAGES)
def test_no_line_makes_a_traceback(lines: list[bytes], some: dict[str, Any], messages: Any) -> None:
    rows = [some, {**some, "messages": messages}]
    lines += [json.dumps(value).encode() for value in rows]
    for name in ("chat", "sharegpt", "alpaca", "dpo"):
        part = examine_lines(lines, Options(format=name))
        assert set(part.counts) <= set(CODES)


@pytest.mark.slow
def test_a_hundred_thousand_fuzzed_lines(tmp_path: Path) -> None:
    """Mutations of planted and clean lines, as bytes and as JSON values."""
    picker = random.Random(11)
    seeds = [line for some in planted_lines().values() for line in some] + clean_lines()
    with (tmp_path / "fuzz.jsonl").open("wb") as file:
        for _ in range(100_000):
            file.write(_mutated(picker, picker.choice(seeds)).replace(b"\n", b" ") + b"\n")
    result = check(Job([tmp_path / "fuzz.jsonl"], workers=1), silent_log())
    assert result.files[0].n_lines == 100_000
    assert set(result.counts) <= set(CODES)


def _mutated(picker: random.Random, line: bytes) -> bytes:
    body = bytearray(line)
    for _ in range(picker.randint(1, 4)):
        at = picker.randrange(len(body)) if body else 0
        kind = picker.randrange(4)
        if kind == 0 and body:
            body[at] = picker.randrange(256)
        elif kind == 1:
            del body[at : at + picker.randint(1, 30)]
        elif kind == 2:
            body[at:at] = picker.choice(
                [b'"', b"{", b"]", b"null", b"\\u0000", b"\xc3\xa9", b"1e999", b"\\ud800", b","]
            )
        else:
            start = picker.randrange(len(body)) if body else 0
            body[at:at] = body[start : start + picker.randint(1, 40)]
    return bytes(body)
