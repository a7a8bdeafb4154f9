"""The bill of materials against CycloneDX's own schema, which cyclonedx-python-lib carries."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from edgeft.bundle.contents import Extras
from edgeft.bundle.pack import pack
from edgeft.bundle.run import read_run
from edgeft.runtime.bundle import open_bundle
from tests.bundle.handmade import make_run

jsonschema_rs = pytest.importorskip("jsonschema_rs")
pytest.importorskip("cyclonedx")


def schema(name: str) -> Any:
    return json.loads((resources.files("cyclonedx.schema") / "_res" / f"{name}.SNAPSHOT.schema.json").read_bytes())


@pytest.fixture(scope="module")
def is_valid() -> Any:
    """Whether a document is valid CycloneDX 1.6, the schemas it refers to at hand."""

    def beside(uri: str) -> Any:
        return schema(uri.rpartition("/")[2].removesuffix(".SNAPSHOT.schema.json"))

    return jsonschema_rs.validator_for(schema("bom-1.6"), retriever=beside).is_valid


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("sbom")
    run = read_run(make_run(folder / "home"))
    found = []
    for name, extras in (("plain", Extras()), ("licensed", Extras(license="MIT OR Apache-2.0"))):
        pack(run, folder / name, extras, folder=True)
        found.append(open_bundle(folder / name, folder / "cache").json("sbom"))
    return found


def test_the_documents_are_valid(documents: list[Any], is_valid: Any) -> None:
    assert all(is_valid(document) for document in documents)


def test_the_check_checks(documents: list[Any], is_valid: Any) -> None:
    for change in ({"specVersion": 1.6}, {"serialNumber": "1"}, {"components": [{"type": "model", "name": "x"}]}):
        assert not is_valid(documents[0] | change)


def test_what_it_was_made_of_is_listed(documents: list[Any], tmp_path: Path) -> None:
    parts = {part["bom-ref"]: part for part in documents[0]["components"]}
    assert parts["pkg:pypi/torch@2.13.0%2Bcpu"]["version"] == "2.13.0+cpu"
    assert parts["base"]["properties"] == [{"name": "edgeft:base_sha256", "value": "cc" * 32}]
    assert {"data:train", "data:validation", "data:test"} < parts.keys()
    files = {file["name"] for file in documents[0]["metadata"]["component"]["components"]}
    assert {"model/home-Q8_0.gguf", "README.md", "recipe.json"} < files
    assert documents[1]["metadata"]["component"]["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert documents[0]["serialNumber"] != documents[1]["serialNumber"]


def test_the_reference_library_reads_it(documents: list[Any]) -> None:
    from cyclonedx.model.bom import Bom

    bom = Bom.from_json(documents[1])  # type: ignore[attr-defined]
    assert bom.metadata.component.name == "home"
    assert {"torch", "tokenizers"} <= {part.name for part in bom.components}
    assert bom.validate()
