"""Readers: what each format means, that nothing is lost on the way there and back, what is refused."""

import csv
import gzip
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeft.console import silent_log
from edgeft.data import formats
from edgeft.data.check.engine import Job, check
from edgeft.data.importing import import_examples
from edgeft.data.reading import read_examples
from edgeft.data.sources import open_bytes
from edgeft.errors import DataError, EdgeftError

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
# Names no format gives a meaning to.
extras = st.dictionaries(texts.map(lambda text: "x-" + text), json_values, max_size=2)
calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": texts,
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": texts, "arguments": json_values.map(json.dumps) | texts}),
        }
    ),
    min_size=1,
    max_size=2,
)
plain = st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": texts})
weighted = st.fixed_dictionaries({"role": st.just("assistant"), "content": texts, "weight": st.sampled_from([0, 1])})
calling = st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none() | texts, "tool_calls": calls})
result = st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": texts, "content": texts})
parts = st.fixed_dictionaries(
    {"role": st.just("user"), "content": st.lists(texts.map(lambda t: {"type": "text", "text": t}), max_size=3)}
)
messages = st.lists(plain | weighted | calling | result | parts, max_size=4)
tools = st.lists(json_values, max_size=2)


def merged(*parts: Any) -> Any:
    return st.tuples(*parts).map(lambda dicts: {name: value for one in dicts for name, value in one.items()})


optional_tools = st.fixed_dictionaries({}, optional={"tools": tools, "parallel_tool_calls": st.booleans()})
turns = st.lists(
    st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system", "observation", "user"]), "value": texts})
    | st.fixed_dictionaries(
        {
            "from": st.just("function_call"),
            "value": texts | st.builds(lambda n, a: json.dumps({"name": n, "arguments": a}), texts, json_values),
        }
    ),
    max_size=4,
)
one_turn = st.fixed_dictionaries({"from": st.just("gpt"), "value": texts})
ROWS = {
    "chat": merged(st.fixed_dictionaries({"messages": messages}), optional_tools, extras),
    "preference": merged(
        st.fixed_dictionaries(
            {
                "input": merged(st.fixed_dictionaries({"messages": messages}), optional_tools),
                "preferred_output": messages,
                "non_preferred_output": messages,
            }
        ),
        extras,
    ),
    "dpo": merged(
        st.fixed_dictionaries(
            {"chosen": texts | messages, "rejected": texts | messages}, optional={"prompt": texts | messages}
        ),
        optional_tools,
        extras,
    ),
    "prompt-completion": merged(
        st.fixed_dictionaries({"prompt": texts | messages, "completion": texts | messages.filter(bool)}),
        optional_tools,
        extras,
    ),
    "alpaca": merged(
        st.fixed_dictionaries(
            {"instruction": texts, "output": texts},
            optional={
                "input": texts,
                "system": texts,
                "history": st.lists(st.tuples(texts, texts).map(list), max_size=2),
            },
        ),
        extras,
    ),
    "sharegpt": merged(
        st.fixed_dictionaries({"conversations": turns}, optional={"system": texts, "tools": tools.map(json.dumps)}),
        st.just({}) | st.fixed_dictionaries({"chosen": one_turn, "rejected": one_turn}),
        extras,
    ),
    "snips": merged(
        st.fixed_dictionaries(
            {
                "intent": texts,
                "data": st.lists(st.fixed_dictionaries({"text": texts}, optional={"entity": texts}), max_size=3),
            }
        ),
        extras,
    ),
    "text": merged(st.fixed_dictionaries({"text": texts}), extras),
}


def test_every_format_is_tried() -> None:
    assert set(ROWS) == {known.name for known in formats.FORMATS}


@pytest.mark.parametrize("name", ROWS)
def test_import_export_import_is_the_identity(name: str) -> None:
    shape = formats.by_name(name)

    @QUICK
    @given(ROWS[name])
    def check(row: Any) -> None:
        for example in shape.read(json.loads(json.dumps(row)), Counter()):
            losses: Counter[str] = Counter()
            written = json.loads(json.dumps(shape.write(example, losses)))
            assert shape.read(written, Counter()) == [example]
            assert not losses or name in ("preference", "dpo")

    check()


@pytest.mark.parametrize("name", ROWS)
def test_import_to_chat_and_back_loses_nothing(name: str) -> None:
    """Through canonical chat JSONL the example is the same one, and the format's own row can be made again."""
    shape, chat = formats.by_name(name), formats.by_name("chat")

    @QUICK
    @given(ROWS[name])
    def check(row: Any) -> None:
        for example in shape.read(row, Counter()):
            line = json.loads(json.dumps(chat.write(example, Counter())))
            assert chat.read(line, Counter()) == [example]

    check()


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".parquet"])
def test_files_of_every_kind_hold_the_same_rows(suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f'say {i} "é\\[{{', "completion": "a\nb,]}"} for i in range(200)]
    path = tmp_path / f"data{suffix}"
    body = (json.dumps(rows, indent=1) if ".json" in path.suffixes else "\n".join(map(json.dumps, rows))).encode()
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(body, mtime=0))
    elif suffix.endswith("zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(body))
    elif suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(body)
    read = list(read_examples(path).examples)
    assert [[m["content"] for m in example["messages"]] for _, example in read] == [list(r.values()) for r in rows]
    lines = [line for line, _ in read]
    assert lines == ([2 + 4 * i for i in range(200)] if ".json" in path.suffixes else list(range(1, 201)))


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
NESTED: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1}], "tags": ["x"]},
    {
        "messages": [
            {"role": "user", "content": "a?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "content": "sunny, then"},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tags": [],
    },
]


def test_parquet_holds_conversations_in_nested_lists(tmp_path: Path) -> None:
    """Parquet gives every message all the fields any message has: the nulls must not come back as fields."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"tools": None, **NESTED[0]}, NESTED[1]]  # Arrow takes the columns of the first row
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    reading = read_examples(tmp_path / "a.parquet")
    assert [example for _, example in reading.examples] == NESTED
    assert (reading.format, reading.losses) == ("chat", Counter())
    assert check(Job([tmp_path / "a.parquet"]), silent_log()).n_errors == 0
    import_examples(read_examples(tmp_path / "a.parquet"), tmp_path / "b.jsonl")
    assert [example for _, example in read_examples(tmp_path / "b.jsonl").examples] == NESTED
    parquet.write_table(arrow.Table.from_pylist([{"text": ["two", "parts"], "label": 3}] * 2), tmp_path / "c.parquet")
    mapped = read_examples(tmp_path / "c.parquet", columns={"prompt": "text", "completion": "label"})
    assert [m["content"] for m in next(mapped.examples)[1]["messages"]] == ['["two", "parts"]', "3"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("to", ["prompt-completion", "alpaca", "chat"])
def test_a_table_comes_back_from_every_format_that_can_hold_it(kind: str, to: str, tmp_path: Path) -> None:
    table = [{"question": f'what, "{i}"\nis é?', "answer": f"it is {i}", "topic": "n"} for i in range(5)]
    path = tmp_path / f"a.{kind}"
    if kind == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
    else:
        arrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(table), path)
    first = list(read_examples(path, columns={"prompt": "question", "completion": "answer"}).examples)
    assert [[m["content"] for m in e["messages"]] for _, e in first] == [[r["question"], r["answer"]] for r in table]
    import_examples(read_examples(path, columns={"prompt": "question", "completion": "answer"}), tmp_path / "b", to)
    assert [example for _, example in read_examples(tmp_path / "b", to).examples] == [example for _, example in first]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": "nope", "completion": "label"}, "no row has the column nope"),
        ({"prompt": "text", "completion": "label.name"}, r"no row has the column label\.name"),
        ({"prompt": "text", "completion": "label+nope"}, "no row has the column nope"),
    ],
)
def test_a_column_that_no_row_has_is_named(columns: dict[str, str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,b\nc,d\n")
    with pytest.raises(DataError, match=message):
        list(read_examples(tmp_path / "a.csv", columns=columns).examples)


@QUICK
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_csv_is_what_the_csv_module_wrote(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    rows = [(a.replace("\0", ""), b.replace("\0", "")) for a, b in rows]
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows([("q", "a"), *rows])
    (tmp_path / "t.csv").write_bytes(text.getvalue().encode())
    read = read_examples(tmp_path / "t.csv", columns={"prompt": "q", "completion": "a"})
    assert [tuple(m["content"] for m in e["messages"]) for _, e in read.examples] == rows


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BytesIO(b'\n{"text": "a"}\n')

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert [line for line, _ in read_examples(Path("-")).examples] == [2]


@pytest.mark.parametrize("block", [1, 2, 7])
def test_arrays_are_cut_alike_whatever_the_block(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeft.data.sources.BLOCK_BYTES", block)
    rows = [{"text": 'a\\"],[{'}, {"text": ""}, {"text": "\\", "n": [[1], {"x": "}"}]}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
    written = [formats.by_name("text").write(e, Counter()) for _, e in read_examples(tmp_path / "a.json").examples]
    assert written == rows


CASES = [
    ("a.jsonl", b"", "no example in this file"),
    ("a.jsonl", b"[]\n[]\n", "not an object"),
    ("a.jsonl", b'{"foo": 1}\n', "not recognised; its columns are: foo"),
    ("a.json", b'[{"text": "a"}', "the file ends inside it"),
    ("a.json", b'[{"text": "a"}] x', "something follows"),
    ("a.csv", b"a,a\n1,2\n", "a header of different column names"),
    ("a.csv", b"text,label\n1\n", "a.csv:2: 1 fields where the header has 2"),
    ("a.csv", b'text,label\n"a,b\n', "not CSV"),
    ("a.csv", b"text,label\n\xff,b\n", "not utf-8"),
    ("a.txt", b"ab\n\xff", "a.txt:2: not utf-8"),
    ("a.jsonl.gz", b"no gzip", "cannot be read"),
    ("a.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-4], "cannot be read"),
    ("a.jsonl.zst", b"no zstandard", "damaged"),
    ("a.parquet", b"no parquet", "not a readable Parquet file"),
]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "cp1252", "cp1251", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".json", ".jsonl", ".jsonl.gz"])
def test_encodings_are_told(codec: str, suffix: str, tmp_path: Path) -> None:
    said = "Какая завтра погода в Москве, скажите" if codec == "cp1251" else "Où est la forêt, déjà vu à côté de l'été"
    rows = {".csv": f'prompt,completion\n"{said}",ok\n', ".txt": f"{said}\n"}
    body = rows.get(suffix, json.dumps({"prompt": said, "completion": "ok"}, ensure_ascii=False) + "\n").encode(codec)
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(body, mtime=0) if suffix.endswith("gz") else body)
    reading = read_examples(tmp_path / f"a{suffix}", encoding="auto")
    assert [e["messages"][0]["content"] for _, e in reading.examples] == [said]
    told = [f"read as {codec}, as its letters or its first bytes tell"]
    assert reading.notes == ([] if "utf-8" in codec else told)


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_stray_bytes_are_read_as_windows_wrote_them(suffix: str, tmp_path: Path) -> None:
    rows = [{"text": f"café number {i}", "label": "été"} for i in range(5)]
    body = json.dumps(rows, ensure_ascii=False, indent=0).encode()
    if suffix == ".csv":
        body = b"text,label\n" + b"".join(f"{r['text']},{r['label']}\n".encode() for r in rows)
    body = body.replace("café number 3".encode(), b"caf\xe9 number 3")
    (tmp_path / f"a{suffix}").write_bytes(body)
    reading = read_examples(tmp_path / f"a{suffix}", encoding="auto")
    assert [e["messages"][0]["content"] for _, e in reading.examples] == [row["text"] for row in rows]
    assert reading.losses["lines with bytes that are not UTF-8: read as Windows-1252"] == 1
    result = check(Job([tmp_path / f"a{suffix}"]), silent_log())
    assert [(f.code, f.line) for f in result.findings if f.code == "W112"] == [
        ("W112", 5 if suffix == ".csv" else body.count(b"\n", 0, body.index(b"\xe9")) + 1)
    ]


@pytest.mark.parametrize(("name", "body", "message"), CASES)
def test_files_that_are_refused(name: str, body: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(DataError, match="(?i)" + message):
        import_examples(read_examples(tmp_path / name), tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"), open_bytes(tmp_path / "none"):
        pass


@QUICK
@given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_input_makes_a_traceback(tmp_path: Path, body: bytes) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt", "a.jsonl.gz", "a.jsonl.zst"):
        (tmp_path / name).write_bytes(body)
        for format_name in (None, *ROWS):
            try:
                for _ in read_examples(tmp_path / name, format_name).examples:
                    pass
            except EdgeftError:
                pass


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_rows_of_any_json_are_read_or_refused(name: str) -> None:
    shape = formats.by_name(name)
    names = st.sampled_from(
        ["messages", "role", "content", "input", "preferred_output", "non_preferred_output", "prompt", "completion",
         "chosen", "rejected", "instruction", "output", "history", "instances", "conversations", "from", "value",
         "tools", "tool_calls", "data", "text", "intent", "entity", "system", "rejected_from"]
    )  # fmt: skip
    anything = st.recursive(
        json_values,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5),
        max_leaves=15,
    )

    @QUICK
    @given(st.dictionaries(names, anything, max_size=6))
    def check(row: Any) -> None:
        for example in _read(shape, row):
            for other in formats.FORMATS:
                try:
                    other.write(example, Counter())
                except formats.Unreadable:
                    pass

    check()


def _read(shape: formats.Format, row: Any) -> list[Any]:
    try:
        return shape.read(row, Counter())
    except formats.Unreadable:
        return []


REAL = {  # set -> (files, column map)
    "banking77": (["train.csv", "test.csv"], {}),
    "gpteacher": (["codegen-instruct.json"], {}),
    "gsm8k": (["train.jsonl", "test.jsonl"], {}),
    "gutenberg_novels": (["darwin.txt"], {}),
    "instruct_small": (
        ["dpo_en_demo.json", "glaive_toolcall_en_demo.json", "identity.json", "kto_en_demo.json", "seed_tasks.jsonl"],
        {},
    ),
    "openai_moderation": (["samples-1680.jsonl.gz"], {"prompt": "prompt", "completion": "S+H+V"}),
    "presidio_pii": (["synth_dataset_v2.json"], {"prompt": "full_text", "completion": "spans"}),
    "restaurant8k": (["restaurant8k/test.json"], {"prompt": "userInput.text", "completion": "labels"}),
    "scitldr": (["dev.jsonl"], {}),
    "snips_nlu": (["AddToPlaylist/train_AddToPlaylist_full.json"], {}),
    "tinystories_sample": (["stories.jsonl"], {}),
    "wikisql_mlx": (["train.jsonl"], {}),
    "wikitext2_eval": (["test.txt"], {}),
}  # fmt: skip
NO_EXAMPLES = {"openai_openapi"}  # the hosted API's schemas


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_sets_are_read_whole(name: str, shared: Path) -> None:
    files, columns = REAL[name]
    for file in files:
        reading = read_examples(shared / "data" / name / file, columns=columns)
        assert sum(1 for _ in reading.examples) > 0
        assert reading.problems == []


@pytest.mark.shared
def test_every_real_set_is_tried(shared: Path) -> None:
    assert {folder.name for folder in (shared / "data").iterdir()} == set(REAL) | NO_EXAMPLES
