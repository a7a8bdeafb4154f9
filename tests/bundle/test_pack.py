"""Packing a run: what is in the bundle, that the same run gives the same bytes, and what is refused."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeft.bundle.contents import Extras
from edgeft.bundle.pack import pack
from edgeft.bundle.run import read_run
from edgeft.errors import ArtifactError, GateFailed, UsageError
from edgeft.runtime.bundle import Bundle, check_bundle, open_bundle
from edgeft.runtime.bundle_manifest import FORMAT
from tests.bundle.handmade import BENCH, LABELS, SCORE, SYSTEM, make_run, stage


def packed(run: Path, out: Path, extras: Extras = Extras(), **options: Any) -> Bundle:  # noqa: B008
    pack(read_run(run), out, extras, **options)
    return open_bundle(out, out.parent / "cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "home")


@pytest.fixture(scope="module")
def bundle(run: Path) -> Bundle:
    return packed(run, run.parent / "home.edgeft")


def test_every_part_is_there(bundle: Bundle) -> None:
    assert bundle.model.read_bytes() == b"GGUF weights"
    assert bundle.json("generation") == {"temperature": 0.0, "max_new_tokens": 8, "n_ctx": 256, "system": SYSTEM}
    assert bundle.json("labels") == sorted(LABELS)
    assert bundle.json("schema") == {"type": "string"}
    assert bundle.json("report") == {"format": 1}
    assert sorted(path.name for path in bundle.path.glob("tokenizer/*")) == ["tokenizer.json", "tokenizer_config.json"]
    template = bundle.file("chat_template")
    assert template is not None
    assert "im_start" in template.read_text()
    assert bundle.manifest.gate is None
    recipe = bundle.json("recipe")
    assert recipe["recipe"]["model"] == {"base": "edgeft/nano"}
    assert recipe["recipe"]["data"] == {"max_length": 128}
    assert recipe["inputs"]["data.train"] == "aa" * 32


def test_a_zip_tool_can_read_it(run: Path, bundle: Bundle) -> None:
    with zipfile.ZipFile(run.parent / "home.edgeft") as file:
        assert file.testzip() is None
        assert json.loads(file.read("bundle.json"))["format"] == FORMAT
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_the_same_run_gives_the_same_bytes(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    packed(run, tmp_path / "again.edgeft")
    assert (tmp_path / "again.edgeft").read_bytes() == (run.parent / "home.edgeft").read_bytes()
    folder = packed(run, tmp_path / "folder", folder=True)
    assert folder.manifest.raw == bundle.manifest.raw


def test_the_card_has_the_numbers_and_their_limits(bundle: Bundle) -> None:
    card = bundle.file("card")
    assert card is not None
    _, head, text = card.read_text().split("---\n", 2)
    assert yaml.safe_load(head) == {
        "license": "apache-2.0",
        "base_model": "edgeft/nano",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["edgeft"],
    }
    for said in (
        "label_accuracy 0.900 [0.700, 0.970] on 20 test examples", "| 20 | 0.900 [0.700, 0.970] |", SYSTEM,
        "0.0123 J for a token", "RAPL package-0", "Bias, safety", "what it was not trained for was not measured",
    ):  # fmt: skip
        assert said in text, said


def test_the_card_says_whose_numbers_they_are(run: Path, tmp_path: Path) -> None:
    other = packed(run, tmp_path / "f16.edgeft", Extras(file="F16"))
    assert other.model.name == "home-F16.gguf"
    assert "All numbers are of home-Q8_0.gguf, not of home-F16.gguf" in (other.path / "README.md").read_text()


def test_another_file_comes_with_its_own_numbers(tmp_path: Path) -> None:
    other = BENCH | {"file": "home-F16.gguf", "accuracy": {"scores": [SCORE | {"value": 0.95}], "reliability": [{}]}}
    run = make_run(tmp_path / "home", others=[other])
    bundle = packed(run, tmp_path / "f16.edgeft", Extras(file="F16"))
    assert bundle.json("measurements") == other
    assert bundle.json("calibration") == {"reliability": [{}]}
    card = (bundle.path / "README.md").read_text()
    assert "label_accuracy 0.950" in card
    assert "All numbers are of" not in card


def test_what_the_packer_gives_wins(run: Path, tmp_path: Path) -> None:
    for name, text in (("MIT.txt", "MIT License"), ("g.gbnf", 'root ::= "on"'), ("s.json", '{"type": "object"}')):
        (tmp_path / name).write_text(text)
    files = {"grammar": tmp_path / "g.gbnf", "schema": tmp_path / "s.json"}
    extras = Extras(license="MIT", license_files=(tmp_path / "MIT.txt",), files=files)
    bundle = packed(run, tmp_path / "a.edgeft", extras)
    assert bundle.json("schema") == {"type": "object"}
    assert (bundle.path / "grammar.gbnf").read_text() == 'root ::= "on"'
    assert (bundle.path / "licences" / "MIT.txt").read_text() == "MIT License"
    assert (bundle.path / "README.md").read_text().startswith('---\nlicense: "mit"\n')


def test_paths_of_this_machine_stay_here(tmp_path: Path) -> None:
    run = make_run(tmp_path / "home", base="/home/me/base")
    manifest = run / "data" / "manifest.json"
    content = json.loads(manifest.read_bytes())
    content["made_from"] |= {
        "recipe data.replay.path": "/home/me/general.jsonl",
        "recipe data.train": [{"path": "/home/me/a.jsonl", "weight": 2.0}],
    }
    manifest.write_text(json.dumps(content))
    bundle = packed(run, tmp_path / "a.edgeft")
    recipe = bundle.json("recipe")["recipe"]["data"]
    assert recipe["replay"] == {"path": "general.jsonl"}
    assert recipe["train"] == [{"path": "a.jsonl", "weight": 2.0}]
    for path in bundle.path.rglob("*"):
        assert path.is_dir() or b"/home/me" not in path.read_bytes(), path


def test_a_model_that_samples_keeps_its_sampling(tmp_path: Path) -> None:
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_length": 20}
    run = make_run(tmp_path / "home", generation=sampling)
    generation = packed(run, tmp_path / "a.edgeft").json("generation")
    assert (generation["temperature"], generation["top_p"]) == (0.7, 0.9)


def test_a_classifier_has_the_labels_and_confidence_of_its_head(tmp_path: Path) -> None:
    names = {str(at): f"label {at}" for at in range(12)}
    config = {"architectures": ["BertForSequenceClassification"], "id2label": names}
    entries = [{"file": "int8/model.onnx", "format": "onnx", "ftype": "int8", "bytes": 5}]
    exported = {"int8/model.onnx": b"graph", "int8/confidence.json": b'{"temperature": 1.5, "threshold": 0.2}'}
    run = make_run(tmp_path / "home", config=config, entries=entries, exported=exported)
    bundle = packed(run, tmp_path / "a.edgeft")
    assert bundle.json("labels") == [f"label {at}" for at in range(12)]
    assert bundle.json("calibration") == {"temperature": 1.5, "threshold": 0.2}
    assert (bundle.model / "confidence.json").is_file()
    assert bundle.json("generation") == {"n_ctx": 256}
    card = (bundle.path / "README.md").read_text()
    assert 'pipeline_tag: "text-classification"' in card
    assert 'model.classify(["..."])' in card


def test_a_model_of_several_files_is_a_folder(tmp_path: Path) -> None:
    entries = [{"file": "int4-32/model.onnx", "format": "onnx", "dtype": "int4", "bytes": 9, "min_ort": "1.22"}]
    exported = {"int4-32/model.onnx": b"graph", "int4-32/genai_config.json": b"{}"}
    bundle = packed(make_run(tmp_path / "home", entries=entries, exported=exported), tmp_path / "a.edgeft")
    assert bundle.model == bundle.path / "model"
    assert sorted(path.name for path in bundle.model.iterdir()) == ["genai_config.json", "model.onnx"]


def test_the_last_gguf_file_ships_unless_the_recipe_says_otherwise(tmp_path: Path) -> None:
    entries = [
        {"file": "home-F16.gguf", "format": "gguf", "ftype": "F16", "bytes": 4, "fallbacks": {}},
        {"file": "int4-32/model.onnx", "format": "onnx", "ftype": "int4-32", "bytes": 9, "min_ort": "1.22"},
    ]
    exported = {"home-F16.gguf": b"GGUF", "int4-32/model.onnx": b"graph"}
    run = make_run(tmp_path / "home", entries=entries, exported=exported)
    assert packed(run, tmp_path / "a.edgeft").model.name == "home-F16.gguf"
    manifest = run / "export" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"recipe export.ship": null', '"recipe export.ship": "int4-32"'))
    assert packed(run, tmp_path / "b.edgeft").model.name == "model"


def test_a_base_that_is_not_ours_has_no_licence_by_guess(tmp_path: Path) -> None:
    bundle = packed(make_run(tmp_path / "home", base="/home/me/models/smol"), tmp_path / "a.edgeft")
    card = (bundle.path / "README.md").read_text()
    assert '\nlicense: "other"\nbase_model: "smol"\n' in f"\n{card.removeprefix('---')}"
    assert "Not stated." in card
    assert not (bundle.path / "licences").exists()


def test_a_failed_run_is_packed_only_when_asked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "home", passed=False)
    with pytest.raises(GateFailed, match="missed budgets"):
        packed(run, tmp_path / "a.edgeft")
    assert not list(tmp_path.glob("*.edgeft"))
    assert packed(run, tmp_path / "a.edgeft", failed=True).manifest.gate == {"passed": False}


@pytest.mark.parametrize(
    ("extras", "error", "message"),
    [
        (Extras(file="Q4_K_M"), UsageError, "exported no such file, only F16, Q8_0"),
        (Extras(license_files=(Path("missing.txt"),)), UsageError, "missing.txt: no such file"),
        (Extras(license_files=(Path(__file__).parent,)), UsageError, "bundle: no such file"),
        (Extras(license_files=(Path("a b.txt"),)), UsageError, "licences/a b.txt: a name that has characters"),
    ],
)
def test_wrong_options(run: Path, tmp_path: Path, extras: Extras, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        packed(run, tmp_path / "a.edgeft", extras)
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]


def test_a_changed_artifact_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "home")
    (run / "export" / "home-Q8_0.gguf").write_bytes(b"GGUF weighty")
    with pytest.raises(ArtifactError, match=r"home-Q8_0.gguf: is missing or changed"):
        read_run(run)


def test_artifacts_of_two_runs_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "home")
    manifest = run / "merge" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("mergemergemergemerge", "another"))
    with pytest.raises(ArtifactError, match="made of another merge than the one beside it"):
        read_run(run)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the folder of a run"):
        read_run(tmp_path)


def test_a_folder_is_not_written_over(run: Path, tmp_path: Path) -> None:
    packed(run, tmp_path / "folder", folder=True)
    with pytest.raises(ArtifactError, match="is there already"):
        packed(run, tmp_path / "folder", folder=True)
    assert check_bundle(tmp_path / "folder").name == "home"


def test_no_question_of_the_test_set_leaves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "home")
    texts = "## Worst answers\n\n| prompt |\n|---|\n| secret \\#\\# x |\n\n## Errors by field\n\n| secret |\n\n"
    report = {"report.json": {"format": 1, "mistakes": {"worst": ["secret"]}}, "report.md": (
        "# home\n\n## Accuracy\n\n| 0.9 |\n\n" + texts + "## Parity\n\n| pass |\n").encode()}  # fmt: skip
    stage(run, "report", report, {}, {"stage bench": read_run(run).stages["bench"].key})
    pack(read_run(run), tmp_path / "app", Extras(), folder=True)
    assert json.loads((tmp_path / "app" / "reports" / "report.json").read_text()) == {"format": 1}
    card = (tmp_path / "app" / "README.md").read_text()
    assert "secret" not in card
    assert "## Accuracy\n\n| 0.9 |" in card
    assert "## Parity\n\n| pass |" in card
