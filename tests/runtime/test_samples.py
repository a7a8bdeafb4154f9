"""The sample applications give the answer of `edgeft.runtime` on the same files.

C needs a compiler and llama.cpp's source (its headers) in $LLAMA_CPP_SOURCE; Node a folder in $TRANSFORMERS_JS whose
node_modules holds @huggingface/transformers. Without them they are skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import pytest

from edgeft.console import silent_log
from edgeft.runtime import load
from tests.tiny import make_tiny_llama

TEXT = "turn on the kitchen light"
LLAMA_SOURCE, NODE = os.environ.get("LLAMA_CPP_SOURCE"), os.environ.get("TRANSFORMERS_JS")


@pytest.fixture(scope="module")
def samples(repo_root: Path) -> Path:
    return repo_root / "recipes" / "embed"


def expected(path: Path) -> str:
    with load(path, n_threads=1) as model:
        return model.chat([{"role": "user", "content": TEXT}], max_new_tokens=64).text


def output(command: list[str | Path], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(errors="replace")


def test_python(samples: Path, repo_root: Path, either_path: Path, tmp_path: Path) -> None:
    assert output([sys.executable, samples / "app.py", either_path, TEXT], repo_root) == expected(either_path)
    done = subprocess.run(
        [sys.executable, samples / "app.py", tmp_path, TEXT], cwd=repo_root, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "a folder, not a model file" in done.stderr


@pytest.mark.skipif(not LLAMA_SOURCE or not shutil.which("cc"), reason="needs cc and $LLAMA_CPP_SOURCE")
def test_c(samples: Path, model_file: Path, tmp_path: Path) -> None:
    source, libraries = Path(str(LLAMA_SOURCE)), Path(llama_cpp.__file__).parent / "lib"
    headers = [f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
    linked = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lllama", "-o", tmp_path / "app"]
    output(["cc", "-Wall", "-Wextra", "-Werror", samples / "app.c", *headers, *linked], tmp_path)
    assert output([tmp_path / "app", model_file, TEXT], tmp_path) == expected(model_file)


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in the layout of transformers.js."""
    from edgeft.export.onnx.export import export_onnx
    from edgeft.export.onnx.settings import OnnxSettings

    root = tmp_path_factory.mktemp("page")
    make_tiny_llama(root / "model", tie_word_embeddings=False)
    settings = OnnxSettings(dtype="fp32", layout="transformers.js")
    export_onnx(root / "model", root, entries=[settings], provenance={}, log=silent_log(), n_threads=1)
    return root / "fp32"


def test_the_layout_for_pages_has_the_template_where_transformers_js_reads_it(page_folder: Path) -> None:
    """`PreTrainedTokenizer` of transformers.js 4 takes `chat_template` of tokenizer_config.json, and no other."""
    config = json.loads((page_folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == (page_folder / "chat_template.jinja").read_text()


@pytest.mark.skipif(not NODE or not shutil.which("node"), reason="needs node and $TRANSFORMERS_JS")
def test_node(samples: Path, page_folder: Path, tmp_path: Path) -> None:
    shutil.copy(samples / "app.mjs", tmp_path / "app.mjs")
    (tmp_path / "node_modules").symlink_to(Path(str(NODE)) / "node_modules")
    assert output(["node", "app.mjs", page_folder, "fp32", TEXT], tmp_path) == expected(page_folder)
