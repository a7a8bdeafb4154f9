"""The bench zone runs on a device: numpy and the runtime's backend, nothing of the training side."""

import subprocess
import sys
from pathlib import Path

import pytest

import edgeft.bench

FOLDER = Path(edgeft.bench.__file__).parent
MODULES = sorted(".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FOLDER.rglob("[a-z]*.py"))
HEAVY = {"torch", "transformers", "peft", "pydantic", "yaml", "sklearn", "scipy", "llama_cpp", "gguf", "rich"}


@pytest.mark.parametrize("module", MODULES)
def test_module_loads_nothing_heavy(module: str) -> None:
    code = f"import edgeft.bench.{module}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert not HEAVY & set(done.stdout.split())


def test_budgets_are_read_without_numpy() -> None:
    code = "import edgeft.bench.budgets, sys; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == "False\n"
