"""`edgeft data ...` at the command line: arguments, exit codes, what is printed where."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from tests.data.planted import bot, clean_lines, pair, row, user
from tests.tiny import make_tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    make_tiny_llama(folder / "base")
    for name in ("train", "validation", "test"):
        (folder / f"{name}.jsonl").write_bytes(b"".join(pair(i, name) + b"\n" for i in range(12)))
    (folder / "clean.jsonl").write_bytes(b"\n".join(clean_lines()) + b"\n")
    (folder / "bad.jsonl").write_bytes(
        pair(1, "bad") + b"\n{\n" + row(user("mail jane@example.com"), bot("ok")) + b"\n"
    )
    (folder / "qa.csv").write_text("q,a\nwhat,that\nwho,me\n")
    (folder / "schema.json").write_text('{"type": "object"}')
    recipe = {
        "name": "t",
        "model": {"base": "base"},
        "data": {"train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl", "max_length": 2000},
        "train": {"batch_tokens": 1024},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(["data", *map(str, args)])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out, said.err


CASES: list[tuple[list[str], int, str, str]] = [
    (["--help"], 0, "Find what is wrong with data files", ""),
    (["import", "qa.csv", "-o", "out.jsonl"], 1, "", "not recognised; its columns are: q, a"),
    (
        ["import", "qa.csv", "-o", "out.jsonl", "--map", "prompt=q", "--map", "completion=a"],
        0,
        "",
        "2 examples written",
    ),
    (["import", "qa.csv", "-o", "-", "--map", "prompt=q", "--map", "completion=a"], 0, '"content": "what"', ""),
    (["import", "qa.csv", "-o", "again1.jsonl", "--map", "answer=a"], 2, "", "NAME one of prompt"),
    (["import", "bad.jsonl", "-o", "again2.jsonl"], 3, "", "bad.jsonl:2: not JSON"),
    (
        ["import", "clean.jsonl", "-o", "again3.jsonl", "--to", "alpaca", "--json"],
        3,
        '"format": "chat"',
        "were left out",
    ),
    (["import", "clean.jsonl", "-o", "again4.jsonl", "--to", "csv"], 2, "", "unknown format 'csv'"),
    (["import", "clean.jsonl", "-o", "again5.jsonl", "--encoding", "nope"], 2, "", "unknown encoding"),
    (["import", "none.jsonl", "-o", "again6.jsonl"], 1, "", "No such file"),
    (["check", "clean.jsonl"], 0, "examples", ""),
    (["check", "bad.jsonl"], 3, "E101", "1 errors in 1 files"),
    (["check", "bad.jsonl", "--json", "--no-near"], 3, '"code": "E101"', ""),
    (["check", "bad.jsonl", "--fix", "--html", "r.html"], 0, "E101", "2 lines kept, 1 dropped"),
    (["check", "train.jsonl", "train.jsonl"], 3, "E503", ""),
    (["check", "clean.jsonl", "--schema", "schema.json"], 3, "E705", ""),
    (["check", "clean.jsonl", "--schema", "qa.csv"], 1, "", "not a JSON Schema"),
    (["check"], 2, "", "nothing to check"),
    (["check", "--codes"], 0, "W502", ""),
    (["check", "--recipe", "recipe.yaml"], 0, "validation.jsonl", ""),
    (["check", "none.jsonl"], 1, "", "no such file"),
    (["preview", "train.jsonl", "--recipe", "recipe.yaml", "-n", "1"], 0, "⟦Tell me", ""),
    (["preview", "train.jsonl", "--recipe", "recipe.yaml", "--json"], 0, '"learned": true', ""),
    (["split", "clean.jsonl", "-o", "parts", "--shares", "50/25/25"], 0, "validation", ""),
    (["split", "clean.jsonl", "-o", "parts", "--group", "nope"], 2, "", "no example has this field"),
    (["redact", "bad.jsonl", "-o", "out.jsonl"], 0, "EMAIL_ADDRESS", "1 of 2 examples changed"),
    (["redact", "bad.jsonl", "-o", "out.jsonl", "--kinds", "NOPE"], 2, "", "unknown kind NOPE"),
    (["redact", "bad.jsonl", "-o", "out.jsonl", "--ner", "no_such_model"], 1, "", "no_such_model is not installed"),
    (["stats", "train.jsonl", "--recipe", "recipe.yaml", "--price", "25"], 0, "price of an epoch", ""),
    (["none.yaml"], 2, "", "none.yaml"),
]


@pytest.mark.parametrize(("args", "code", "out", "err"), CASES, ids=[" ".join(case[0])[:60] for case in CASES])
def test_commands(
    args: list[str], code: int, out: str, err: str, folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    found = run(capsys, *args)
    assert found[0] == code, found
    assert out in found[1]
    assert err in found[2]


def test_stats_count_what_the_data_stage_counts(folder: Path, tmp_path: Path, capsys: Any) -> None:
    from edgeft.console import silent_log
    from edgeft.recipe_reader import read_recipe
    from edgeft.stages.data import run as run_stage

    metrics = run_stage(read_recipe(folder / "recipe.yaml"), {}, tmp_path, silent_log())
    code, out, _ = run(
        capsys, "stats", folder / "train.jsonl", "--recipe", folder / "recipe.yaml", "--json", "--price", 2
    )
    stats = json.loads(out)
    assert code == 0
    assert stats["files"][0]["tokens"] == metrics["train_tokens"]
    assert stats["files"][0]["loss_tokens"] == metrics["train_loss_tokens"]
    assert stats["total"]["steps"] == -(-metrics["train_tokens"] // 1024) * 3
    assert stats["total"]["price_per_epoch"] == pytest.approx(metrics["train_tokens"] * 2e-6, abs=1e-4)


def test_the_prepared_set_can_be_audited(folder: Path, tmp_path: Path) -> None:
    import hashlib

    from edgeft.console import silent_log
    from edgeft.errors import DataError, DataRejected
    from edgeft.recipe_reader import read_recipe
    from edgeft.stages.data import run as run_stage

    run_stage(read_recipe(folder / "recipe.yaml"), {}, tmp_path, silent_log())
    audit = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    lines = [
        line
        for split in ("train", "validation", "test")
        for line in (tmp_path / f"{split}.jsonl").read_bytes().splitlines()
    ]
    assert [record["sha256"] for record in audit] == [hashlib.sha256(line).hexdigest() for line in lines]
    assert json.loads((tmp_path / "check.json").read_text())["errors"] == 0
    leak = ("data.test=train.jsonl",)
    for more, error, message in (
        ((), DataError, r"(?s)train\.jsonl:1: E503 the same example .*\(.*train\.jsonl:1\).* of \d+ test examples"),
        (("data.fatal=[E5]", "data.allow=[E503]"), DataRejected, r"(?s)/train\.jsonl:1: E503 .*fatal by data.fatal"),
    ):
        out = tmp_path / str(error)
        out.mkdir()
        with pytest.raises(error, match=message):
            run_stage(read_recipe(folder / "recipe.yaml", (*leak, *more)), {}, out, silent_log())
    said: list[str] = []
    log = silent_log()
    log.say = said.append  # type: ignore[method-assign]
    (tmp_path / "allowed").mkdir()
    metrics = run_stage(
        read_recipe(folder / "recipe.yaml", (*leak, "data.allow=[E503]")), {}, tmp_path / "allowed", log
    )
    assert metrics["test_leaked"] == metrics["test_examples"]
    told = "\n".join(said)
    assert "error E503" in told
    assert "the same example in another split" in told
    assert f"  {folder / 'train.jsonl'}:1 ({folder / 'train.jsonl'}:1)" in told
    deduped = read_recipe(folder / "recipe.yaml", ("data.test=validation.jsonl", "data.dedupe=exact"))
    (tmp_path / "deduped").mkdir()
    assert "test_leaked" not in run_stage(deduped, {}, tmp_path / "deduped", silent_log())
