"""Differences planted in GGUF files (written by gguf-py) and in bundles, and that nothing else is reported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import pytest

from edgeft.bundle.contents import Extras
from edgeft.bundle.diff import Side, differences, open_side, text_differences
from edgeft.bundle.pack import pack
from edgeft.bundle.run import read_run
from edgeft.cli.diff import command
from edgeft.errors import BundleError, ModelError, UsageError
from tests.bundle.handmade import make_run

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

Rows = set[tuple[str, str, str | None, str | None]]


def write_gguf(path: Path, **changes: Any) -> Path:
    """A small model file; `changes` replace what it is made of, None leaves it out."""
    made: dict[str, Any] = {
        "name": "tiny", "tokens": ["a", "b", "<end>"], "template": "{{ x }}", "up": np.ones((4, 32), np.float32),
        "down": np.zeros((32, 4), np.float32), "extra": None, "end": 2,
    } | changes  # fmt: skip
    writer = gguf.GGUFWriter(path, "made-up")
    writer.add_name(made["name"])
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(made["tokens"])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(made["end"])
    if made["template"]:
        writer.add_chat_template(made["template"])
    writer.add_tensor("token_embd.weight", np.zeros((len(made["tokens"]), 32), np.float32))
    for key, name in (("up", "blk.0.up.weight"), ("down", "blk.0.down.weight"), ("extra", "extra.weight")):
        if made[key] is not None:
            writer.add_tensor(name, made[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rows(a: Path, b: Path) -> Rows:
    return {(one.part, one.name, one.before, one.after) for one in differences(Side(a), Side(b))}


def test_equal_files_differ_in_nothing(tmp_path: Path) -> None:
    assert rows(write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf")) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "other"}, {("metadata", "general.name", "tiny", "other")}),
        ({"template": "{{ y }}"}, {("template", "tokenizer.chat_template", "{{ x }}", "{{ y }}")}),
        ({"template": None}, {("template", "tokenizer.chat_template", "{{ x }}", None)}),
        ({"end": 1}, {("tokenizer", "tokenizer.ggml.eos_token_id", "2", "1")}),
        ({"tokens": ["a", "c", "<end>"]}, {("tokenizer", "tokenizer.ggml.tokens[1]", "'b'", "'c'")}),
        (
            {"up": np.ones((4, 32), np.float16)},
            {
                ("types", "F32", "3", "2"), ("types", "F16", None, "1"),
                ("tensors", "blk.0.up.weight", "F32 4x32", "F16 4x32"),
            },
        ),
        ({"down": np.zeros((32, 8), np.float32)}, {("tensors", "blk.0.down.weight", "F32 32x4", "F32 32x8")}),
        (
            {"extra": np.zeros(4, np.float32)},
            {("types", "F32", "3", "4"), ("tensors", "extra.weight", None, "F32 4")},
        ),
    ],
)  # fmt: skip
def test_a_planted_difference_is_all_that_is_found(changes: dict[str, Any], expected: Rows, tmp_path: Path) -> None:
    assert rows(write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf", **changes)) == expected


def test_one_changed_weight_is_found(tmp_path: Path) -> None:
    up = np.ones((4, 32), np.float32)
    up[3, 31] = np.nextafter(np.float32(1), np.float32(2))
    (found,) = rows(write_gguf(tmp_path / "a.gguf"), write_gguf(tmp_path / "b.gguf", up=up))
    assert found[:2] == ("tensors", "blk.0.up.weight")
    assert found[2] != found[3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf").read_bytes()


def edited(name: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Change a JSON file of a bundle's folder, and its manifest with it."""

    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_bytes())
        edit(content)
        path.write_text(json.dumps(content))
        relist(folder)

    return change


def relist(folder: Path) -> None:
    """Let the manifest list what is there now."""
    from tests.bundle.building import manifest_of

    manifest = json.loads((folder / "bundle.json").read_bytes())
    files = {name: (folder / name).read_bytes() for name in manifest["files"]}
    manifest["files"] = manifest_of(files)["files"]
    (folder / "bundle.json").write_text(json.dumps(manifest))


def write_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    relist(folder)


@pytest.mark.parametrize(
    ("change", "part", "name", "before", "after"),
    [
        (edited("generation.json", lambda c: c.update(temperature=0.5)), "generation", "temperature", "0.0", "0.5"),
        (edited("labels.json", lambda c: c.append("up")), "labels", "2", None, "up"),
        (
            edited("reports/bench.json", lambda c: c["metrics"].update(energy_j_per_token=0.5)),
            "metrics", "energy_j_per_token", "0.0123", "0.5",
        ),
        (
            edited("reports/bench.json", lambda c: c["accuracy"]["scores"][0].update(value=0.8)),
            "metrics", "label_accuracy", "0.9 [0.7, 0.97]", "0.8 [0.7, 0.97]",
        ),
        (edited("recipe.json", lambda c: c["recipe"]["bench"].update(n_ctx=1)), "recipe", "bench.n_ctx", "256", "1"),
        (edited("recipe.json", lambda c: c["inputs"].pop("data.train")), "inputs", "data.train", "aa" * 32, None),
        (
            edited("recipe.json", lambda c: c["stages"]["merge"]["made_from"].update({"package torch": "3"})),
            "packages", "torch", "2.13.0+cpu", "3",
        ),
        (edited("tokenizer/tokenizer.json", lambda c: c.update(version="2")), "tokenizer", "version", None, "2"),
        (write_template, "template", "chat_template line 1", None, "{{ messages }}"),
    ],
)  # fmt: skip
def test_bundles(
    model: bytes, tmp_path: Path, change: Any, part: str, name: str, before: str | None, after: str | None
) -> None:
    run = read_run(make_run(tmp_path / "home", model=model))
    for side in ("a", "b"):
        pack(run, tmp_path / side, Extras(), folder=True)
    change(tmp_path / "b")
    sides = [open_side(tmp_path / side, tmp_path / "cache") for side in ("a", "b")]
    assert differences(sides[0], sides[0]) == []
    (found,) = differences(*sides)
    assert (found.part, found.name, found.after) == (part, name, after)
    assert part == "template" or found.before == before


def test_a_document_of_another_form(model: bytes, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "home", model=model))
    for side in ("a", "b"):
        pack(run, tmp_path / side, Extras(), folder=True)
    edited("reports/bench.json", lambda content: content.update(accuracy=[]))(tmp_path / "b")
    sides = [open_side(tmp_path / side, tmp_path / "cache") for side in ("a", "b")]
    with pytest.raises(BundleError, match="not as edgeft writes it"):
        differences(*sides)


def test_a_bundle_against_a_file_compares_the_models(model: bytes, tmp_path: Path) -> None:
    pack(read_run(make_run(tmp_path / "home", model=model)), tmp_path / "a.edgeft", Extras())
    other = write_gguf(tmp_path / "b.gguf", name="other")
    found = differences(open_side(tmp_path / "a.edgeft", tmp_path), open_side(other, tmp_path))
    assert [(one.part, one.name) for one in found] == [("metadata", "general.name")]


def test_text_is_compared_by_lines() -> None:
    assert list(text_differences("a\nb\nc", "a\nx\nc")) == [("line 2", "b", "x")]
    assert list(text_differences("a", "a\nb")) == [("line 2", None, "b")]
    assert list(text_differences(None, "a")) == [("line 1", None, "a")]
    assert list(text_differences("a\n", "a")) == [("line ends", "'a\\n'", "'a'")]


def test_what_is_neither(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "x.edgeft").write_bytes(b"PK\x03\x04")
    for name, error in (("x.txt", UsageError), ("missing", UsageError), ("x.edgeft", BundleError)):
        with pytest.raises(error):
            open_side(tmp_path / name, tmp_path)
    with pytest.raises(ModelError):
        rows(tmp_path / "x.gguf", tmp_path / "x.gguf")


def test_the_command(tmp_path: Path) -> None:
    a = write_gguf(tmp_path / "a.gguf")
    b = write_gguf(tmp_path / "b.gguf", tokens=[f"t{at}\n" for at in range(3)], name="\x1b[31mred")
    many = write_gguf(tmp_path / "c.gguf", tokens=[f"x{at}" for at in range(60)])
    more = write_gguf(tmp_path / "d.gguf", tokens=[f"y{at}" for at in range(60)])

    def said(*words: str | Path) -> str:
        result = click.testing.CliRunner().invoke(command("diff", "Help."), [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    assert said(a, a) == "no difference\n"
    assert "\x1b" not in said(a, b)
    assert "'a'" in said(a, b)
    assert "… and 52 more (--all)" in said(many, more)
    assert "more (--all)" not in said(many, more, "--all")
    content = json.loads(said(a, b, "--json"))
    assert content["same"] is False
    assert {one["part"] for one in content["differences"]} == {"metadata", "tokenizer"}
