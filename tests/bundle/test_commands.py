"""The commands, as people type them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.cli import main
from tests.bundle.building import FILES, ROLES, manifest_of, write_folder
from tests.bundle.handmade import make_run

pytest.importorskip("cryptography")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the command line in a folder with a run: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "home")

    def run(line: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(line.split())
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, said.out, said.err

    return run


def test_from_key_to_unpacked(cli: Any, tmp_path: Path) -> None:
    assert cli("keygen me")[0] == 0
    assert cli("keygen me") == (2, "", "error: me.key: is there already; a key is never written over\n")
    code, out, _ = cli("pack runs/home -o home.edgeft --sign me.key --json")
    assert code == 0
    made = json.loads(out)
    code, out, _ = cli("verify home.edgeft --key me.pub")
    assert (code, out.splitlines()[2]) == (0, f"manifest sha256: {made['sha256']}")
    assert json.loads(cli("verify home.edgeft --json")[1])["signed_by_key"] is False
    code, out, _ = cli("unpack home.edgeft app --key me.pub")
    assert code == 0
    assert out.endswith("the model: app/model/home-Q8_0.gguf\n")
    assert cli("verify app --key me.pub")[0] == 0
    assert cli("unpack home.edgeft app")[0] == 1
    (tmp_path / "app" / "README.md").write_text("changed")
    code, out, err = cli("verify app")
    assert (code, out) == (1, "")
    assert "README.md has 7 bytes" in err


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("pack runs/none -o x.edgeft", 2, "not the folder of a run"),
        ("pack runs/home", 2, "Missing option '-o'"),
        ("pack runs/home -o x.edgeft --file Q2_K", 2, "exported no such file, only F16, Q8_0"),
        ("pack runs/home -o x.edgeft --sign none.key", 2, "none.key: the key cannot be read"),
        ("pack runs/home -o x --layout ollama --folder", 2, "--layout goes with"),
        ("pack runs/home -o x --layout genai", 2, "no genai_config.json"),
        ("pack runs/home -o x --with nothing y", 2, "'nothing' is not one of"),
        ("verify none.edgeft", 1, "cannot be read"),
        ("verify bundle --key runs/home/export/files.json", 2, "not a public key"),
        ("unpack bundle runs/home", 1, "runs/home: is there already"),
        ("reproduce bundle --workdir again", 1, "has no recipe"),
        ("reproduce bundle --workdir runs", 2, "is not empty"),
        ("reproduce home --workdir again", 2, "say where its inputs are: --set data.train=PATH, or --recipe"),
        ("diff bundle runs/home/export/files.json", 2, "neither a bundle nor a .gguf file"),
    ],
)
def test_mistakes(cli: Any, tmp_path: Path, line: str, code: int, message: str) -> None:
    write_folder(tmp_path / "bundle")
    cli("pack runs/home -o home --folder")
    found, _, err = cli(line)
    assert (found, message in err) == (code, True), err
    assert not (tmp_path / "x.edgeft").exists()
    assert not (tmp_path / "again").exists()


RECIPE = """\
name: home
data: {train: a.jsonl, validation: a.jsonl, test: a.jsonl}
train: {}
"""


@pytest.mark.parametrize(
    ("section", "line", "code", "message"),
    [
        (
            {"distill": {"api": {"base_url": "https://evil.example/v1", "model": "x"}}}, "--recipe r.yaml",
            2, "--set distill.api.base_url=https://evil.example/v1",
        ),
        (
            {"distill": {"api": {"base_url": "https://ours/v1", "model": "x", "api_key_env": "SECRET"}}},
            "--recipe r.yaml --set distill.api.base_url=https://ours/v1", 2, "distill.api.api_key_env: the packed",
        ),
        ({"data": {"prepare": {"script": "evil.py"}}}, "--recipe r.yaml", 1, "a.jsonl"),
        ({"data": {"prepare": {"script": "evil.py"}}}, "--set data.train=a.jsonl", 2, "--set data.validation=PATH"),
    ],
)  # fmt: skip
def test_a_hostile_recipe_runs_and_sends_nothing(
    cli: Any, tmp_path: Path, section: dict[str, Any], line: str, code: int, message: str
) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')")
    (tmp_path / "r.yaml").write_text(RECIPE)
    inputs = {f"data.{split}": "00" * 32 for split in ("train", "validation", "test")}
    recipe = {"name": "home", "train": {}, **section}
    record = {"recipe": recipe, "inputs": inputs, "stages": {"export": {"made_from": {}, "files": {}}}}
    files = FILES | {"recipe.json": json.dumps(record).encode()}
    write_folder(tmp_path / "bundle", files, manifest_of(files, roles=ROLES | {"recipe": "recipe.json"}))
    found, _, err = cli(f"reproduce bundle --workdir again {line}")
    assert (found, message in err) == (code, True), err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "again" / "store").exists()


MODEL_TEXT = '{"recipe": {"model": "x"}, "inputs": {}, "stages": {"export": {"made_from": {}, "files": {}}}}'


@pytest.mark.parametrize(
    "record", ["[]", "{}", '{"recipe": {}, "inputs": [], "stages": {"export": {}}}', "null", "{", MODEL_TEXT]
)
def test_a_recipe_of_another_form(cli: Any, tmp_path: Path, record: str) -> None:
    files = FILES | {"recipe.json": record.encode()}
    write_folder(tmp_path / "bundle", files, manifest_of(files, roles=ROLES | {"recipe": "recipe.json"}))
    code, _, err = cli("reproduce bundle --workdir again --set data.train=a.jsonl")
    assert (code, "pack" in err) == (1, True), err


def test_a_missing_library_names_its_extra(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.serialization", None)
    code, _, err = cli("pack runs/home -o x.edgeft --sign me.key")
    assert (code, "edgeft[sign]" in err) == (1, True), err


def test_packing_again_replaces_the_file(cli: Any, tmp_path: Path) -> None:
    cli("pack runs/home -o home.edgeft")
    before = (tmp_path / "home.edgeft").read_bytes()
    shutil.copy(tmp_path / "home.edgeft", tmp_path / "old.edgeft")
    assert cli("pack runs/home -o home.edgeft --license MIT")[0] == 2  # not without being asked to
    cli("pack runs/home -o home.edgeft --license MIT --force")
    assert (tmp_path / "home.edgeft").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home.edgeft", "old.edgeft", "runs"]
