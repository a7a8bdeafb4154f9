"""The law of imports: which part of edgeft may know which, and which may touch which library.

Imports inside functions count as well: a dependency that comes later is a dependency.
"""

import ast
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "edgeft"

GROUND_FLOOR = {"machine"}  # of the standard library and our errors only, so everyone may ask it
# part -> (parts of edgeft it may import, third-party packages it may import)
LIGHT_CLI = {
    "errors", "extras", "quiet", "console", "interrupts", "artifact", "store", "recipe", "sections", "recipe_reader",
    "plan", "pipeline", "preflight", "bench", "report", "parity", "export", "data", "runtime", "quant", "bundle",
    "doctor", "draft", "quick", "torch_dtype", "runs", "status", "machine",
}  # fmt: skip
TORCH = {"numpy", "torch", "transformers", "peft", "tokenizers", "safetensors", "bitsandbytes"}
DATA = {
    "numpy", "orjson", "rensa", "ftfy", "py3langid", "jsonschema_rs", "presidio_analyzer", "tldextract",
    "phonenumbers", "spacy", "openpyxl", "transformers", "rich", "charset_normalizer",
}  # fmt: skip
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "__init__": (set(), set()),
    "__main__": ({"cli"}, set()),
    "errors": (set(), set()),
    "checkpoint_files": ({"errors"}, set()),
    "extras": ({"errors"}, set()),
    "quiet": (set(), {"torch"}),
    "console": (set(), {"rich"}),
    "machine": ({"errors"}, set()),
    "children": ({"errors"}, set()),
    "interrupts": (set(), set()),
    "artifact": ({"errors"}, set()),
    "runs": ({"artifact", "errors", "runtime.bundle"}, set()),
    "status": ({"artifact", "console", "errors"}, set()),
    "store": ({"artifact", "console", "errors"}, set()),
    "yaml12": (set(), {"yaml"}),
    "sections": (set(), {"pydantic"}),
    "recipe": ({"errors", "bench.budgets", "sections"}, {"pydantic"}),
    "recipe_reader": ({"errors", "recipe", "yaml12"}, {"pydantic", "pydantic_core"}),
    "quick": ({"bench.budgets", "recipe"}, set()),
    "plan": ({"errors", "recipe", "store"}, set()),
    "pipeline": (
        {"artifact", "console", "errors", "extras", "interrupts", "plan", "quiet", "recipe", "status", "store",
         "torch_dtype"},
        set(),
    ),
    "torch_dtype": ({"bench.products", "bench.remembered", "console", "errors", "recipe"}, set()),
    "training_memory": ({"errors"}, set()),
    "preflight": (
        {"artifact", "bench.budgets", "bench.noise", "bench.passes", "bench.remembered", "checkpoint_files", "console",
         "errors",
         "pipeline", "plan", "recipe", "sections", "torch_dtype", "training.automatic", "training_memory"},
        {"torch"},
    ),
    "doctor": (
        {"bench.host", "bench.remembered", "children", "errors", "quiet", "runtime"},
        {"torch"},
    ),
    "cli": (LIGHT_CLI, {"click", "yaml"}),
    "conversation": (set(), set()),
    "data": (
        {"artifact", "children", "console", "conversation", "errors", "extras", "page", "recipe", "sections"},
        DATA,
    ),
    "draft": ({"artifact", "checkpoint_files", "data", "errors", "runtime.encoder_folder"}, set()),
    "training": (
        {"artifact", "checkpoint_files", "console", "conversation", "data", "errors", "interrupts", "recipe",
         "sections", "training_memory"},
        TORCH,
    ),
    "quant": (
        {"artifact", "console", "data", "errors", "runtime", "training"},
        {"numpy", "gguf", "llama_cpp", "torch", "transformers"},
    ),
    "export": (
        {"artifact", "checkpoint_files", "children", "console", "errors", "quant", "runtime"},
        {"numpy", "gguf", "llama_cpp", "onnx", "tokenizers"},
    ),
    "parity": (
        {"artifact", "console", "conversation", "errors", "export", "quant", "runtime", "training"},
        TORCH | {"onnx"},
    ),
    "stages": (
        {
            "artifact", "bench", "console", "conversation", "data", "errors", "export", "parity", "quant", "recipe",
            "report", "sections", "training", "training_memory",
        },
        TORCH | {"sklearn"},
    ),
    "runtime": (
        {"artifact", "checkpoint_files", "children", "conversation", "errors"},
        {"numpy", "llama_cpp", "onnxruntime", "tokenizers", "jinja2", "llguidance"},
    ),
    "bench": (
        {"artifact", "children", "console", "conversation", "errors", "extras", "runs", "runtime"},
        {"numpy", "pynvml", "jsonschema_rs"},
    ),
    "lm_eval": ({"runtime"}, {"numpy", "lm_eval"}),
    "page": (set(), set()),
    "report": ({"bench.examples", "bench.mistakes", "bench.paired", "bench.shares", "errors", "page"}, set()),
    "bundle": (
        {"artifact", "checkpoint_files", "console", "data.chatml", "data.tokenizing", "errors", "export", "extras",
         "pipeline", "plan", "recipe", "recipe_reader", "report", "runs", "runtime", "store", "torch_dtype"},
        {"cryptography"},
    ),
    "pytest_plugin": ({"bench", "console", "report"}, {"pytest"}),
}  # fmt: skip
PARTS = sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})


def imported_by(part: str) -> set[str]:
    """Dotted names of everything the part imports from outside itself."""
    paths = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[:2] != ["edgeft", part]}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_imports_only_what_it_may(part: str) -> None:
    assert part in MAY_IMPORT, f"edgeft/{part} is new: give it a row in MAY_IMPORT"
    ours, theirs = MAY_IMPORT[part][0] | GROUND_FLOOR, MAY_IMPORT[part][1]
    for name in imported_by(part):
        top, _, rest = name.partition(".")
        if top == "edgeft":
            allowed = rest == "__version__" or any(f"{rest}.".startswith(f"{may}.") for may in ours)
        else:
            allowed = top in sys.stdlib_module_names or top in theirs
        assert allowed, f"edgeft/{part} imports {name}"


def test_every_row_is_a_part() -> None:
    assert set(MAY_IMPORT) == set(PARTS)


def test_no_circles() -> None:
    graph = {
        part: {name.split(".")[1] for name in imported_by(part) if name.startswith("edgeft.")} - {"__version__"}
        for part in PARTS
    }
    graph["recipe"] -= {"bench"}  # only bench.budgets, which imports nothing but errors
    assert imports_of_budgets() == {"edgeft.errors.UsageError"}
    TopologicalSorter(graph).prepare()


def imports_of_budgets() -> set[str]:
    tree = ast.parse((PACKAGE / "bench" / "budgets.py").read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        f"{node.module}.{alias.name}"
        for node in nodes
        for alias in node.names
        if (node.module or "").split(".")[0] not in sys.stdlib_module_names
    }


def test_the_device_zone_has_one_library_a_backend() -> None:
    """In `runtime` only the files named after llama.cpp import it."""
    for path in (PACKAGE / "runtime").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if not path.name.startswith("llama"):
            assert "import llama_cpp" not in text, path


# What loads onnxruntime's library when it is imported.
ONNXRUNTIME = re.compile(r"(import|from) (onnxruntime|optimum\.onnxruntime)|onnxruntime_genai")
DOOR = "runtime/ort.py"


def test_onnxruntime_has_one_door() -> None:
    """Behind it telemetry is off; whoever imports it another way reports the user's work to its vendor."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).as_posix() != DOOR]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(f"{name} ".startswith(("onnxruntime", "optimum.onnxruntime")) for name in names), path


def test_the_door_closes_telemetry_before_the_import() -> None:
    text = (PACKAGE / DOOR).read_text(encoding="utf-8")
    assert text.index("\nno_telemetry(OF_ONNXRUNTIME)") < text.index("\nimport onnxruntime")


@pytest.mark.parametrize("folder", ["benchmarks", "recipes"])
def test_scripts_beside_the_package_close_it_as_well(folder: str) -> None:
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if ONNXRUNTIME.search(text):
            assert "edgeft.runtime.ort import" in text or "    no_telemetry()" in text, path
