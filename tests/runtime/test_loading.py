"""Opening bundles: what they bring along holds where a call says nothing else."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeft.errors import BundleError, ModelError, UsageError
from edgeft.runtime import load
from edgeft.runtime.defaults import Defaults

SYSTEM = "You are a home assistant. Answer with the name of one device. " * 4
CHAT = [{"role": "user", "content": "turn on the kitchen light"}]
LABELS = ["light", "radio", "heating"]


def make_bundle(folder: Path, model: Path, extras: dict[str, Any], grammar: str | None = None) -> Path:
    """A bundle in `folder` as its format says: `extras` by role."""
    folder.mkdir()
    roles, name = {"model": "model"}, f"model/{model.name}"
    if model.is_dir():
        shutil.copytree(model, folder / "model")
    else:
        (folder / "model").mkdir()
        shutil.copy(model, folder / name)
        roles["model"] = name
    for role, content in extras.items():
        (folder / f"{role}.json").write_text(json.dumps(content))
        roles[role] = f"{role}.json"
    if grammar is not None:
        (folder / "grammar.gbnf").write_text(grammar)
        roles["grammar"] = "grammar.gbnf"
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": 1, "name": "app", "roles": roles, "gate": None, "files": files}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEFT_CACHE", str(tmp_path / "cache"))


def test_a_bundle_is_used_as_it_says(either_path: Path, tmp_path: Path) -> None:
    generation = {"system": SYSTEM, "max_new_tokens": 7, "temperature": 0.9, "top_k": 5, "n_ctx": 512, "unknown": 1}
    calibration = {"temperature": 20.0, "threshold": 0.99}
    bundle = make_bundle(
        tmp_path / "app", either_path, {"generation": generation, "labels": LABELS, "calibration": calibration}
    )
    with load(either_path, n_threads=1, n_ctx=512) as plain:
        chat = [{"role": "system", "content": SYSTEM}, *CHAT]
        expected = plain.chat(chat, max_new_tokens=7, temperature=0.9, top_k=5)
        longer = plain.chat(chat, max_new_tokens=9, temperature=0)
        choice = plain.classify("a", LABELS, system=SYSTEM, temperature=20.0)
    with load(bundle, n_threads=1) as model:
        assert model.n_ctx == 512
        assert model.chat(CHAT).text == expected.text
        assert model.chat(CHAT, max_new_tokens=9, temperature=0).text == longer.text
        assert model.classify("a").probabilities == choice.probabilities
        assert model.classify("a").label is None
        assert model.classify("a", threshold=0.0).label == choice.label
    assert len(list((tmp_path / "cache").glob("app-*.cache/prefixes/*.prefix"))) == 1
    with load(bundle, n_threads=1, n_ctx=256, cache_dir=tmp_path / "mine") as model:
        assert model.n_ctx == 256
        model.chat(CHAT)
    assert len(list((tmp_path / "mine").iterdir())) == 1


@pytest.mark.parametrize("kind", ["schema", "grammar"])
def test_a_bundle_with_a_constraint_answers_by_it(either_path: Path, tmp_path: Path, kind: str) -> None:
    extras = {"schema": {"enum": ["on", "off"]}} if kind == "schema" else {}
    grammar = 'root ::= "on" | "off"' if kind == "grammar" else None
    with load(make_bundle(tmp_path / "app", either_path, extras, grammar), n_threads=1) as model:
        assert model.chat(CHAT).text.strip('"') in ("on", "off")
        assert model.chat(CHAT, choices=["maybe"]).text == "maybe"
        assert model.chat(CHAT, **{kind: None}).text not in ("on", "off", '"on"', '"off"')


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"labels": {"0": "a"}}, "labels.json: not a list of texts"),
        ({"labels": ["a", 1]}, "labels.json: not a list of texts"),
        ({"generation": [1]}, "generation.json: no JSON object"),
        ({"calibration": "warm"}, "calibration.json: no JSON object"),
        ({"calibration": {"temperature": "warm"}}, "calibration.json: .*temperature"),
    ],
)
def test_a_bundle_that_brings_nonsense(model_file: Path, tmp_path: Path, extras: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        load(make_bundle(tmp_path / "app", model_file, extras), n_threads=1)


def test_a_bundle_that_was_changed_is_not_opened(model_file: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "app", model_file, {"labels": LABELS})
    (bundle / "labels.json").write_text(json.dumps(LABELS[::-1]))
    with pytest.raises(BundleError, match=r"labels\.json"):
        load(bundle)


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, message in ((tmp_path, "a folder, not a model"), (tmp_path / "notes.txt", "not a GGUF file")):
        with pytest.raises(ModelError, match=message):
            load(path)
    with pytest.raises(ModelError):
        load(tmp_path / "nothing")


def test_labels_are_needed_where_no_bundle_has_them(model_file: Path) -> None:
    with load(model_file, n_threads=1) as model, pytest.raises(UsageError, match="give a list of at least one label"):
        model.classify("a")


@pytest.mark.parametrize(
    ("own", "given", "merged"),
    [
        ({"temperature": 1.0, "schema": {}}, {}, {"temperature": 1.0, "schema": {}}),
        ({"temperature": 1.0, "schema": {}}, {"regex": "a"}, {"temperature": 1.0, "regex": "a"}),
        ({"schema": {}}, {"schema": None, "seed": 3}, {"schema": None, "seed": 3}),
        ({"top_k": 3}, {"top_k": 0}, {"top_k": 0}),
    ],
)
def test_a_call_overrides_the_defaults(own: dict[str, Any], given: dict[str, Any], merged: dict[str, Any]) -> None:
    assert Defaults(options=own).merged(given) == merged
