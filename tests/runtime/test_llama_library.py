"""llama-cpp-python's package is whole for everybody who asks, and not loaded for the runtime alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from edgeft.runtime.llama_library import build

OURS = "from edgeft.runtime.llama_library import llama_cpp as ours\n"


@pytest.mark.parametrize(
    "code",
    [
        "import llama_cpp; assert llama_cpp.Llama.__name__ == 'Llama'",
        "from llama_cpp import Llama; assert Llama.__name__ == 'Llama'",
        "from llama_cpp import *; assert Llama.__name__ == 'Llama'",
        "import importlib.metadata as m, llama_cpp; assert llama_cpp.__version__ == m.version('llama-cpp-python')",
        "import llama_cpp.llama_chat_format as f; assert f.Jinja2ChatFormatter",
        "import llama_cpp; assert llama_cpp.llama_decode is ours.llama_decode",
        "import llama_cpp; assert llama_cpp.llama_cpp is ours",
        "import llama_cpp; assert not hasattr(llama_cpp, 'nothing')",
    ],
)
@pytest.mark.parametrize("before", [OURS, f"import llama_cpp\n{OURS}"])
def test_others_see_the_package_they_know(repo_root: Path, before: str, code: str) -> None:
    done = subprocess.run([sys.executable, "-c", before + code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list loaded libraries")
def test_the_build_is_of_the_libraries_in_use() -> None:
    with open("/proc/self/maps") as maps:
        loaded = {Path(line.split()[-1]).name for line in maps if "libllama" in line or "libggml" in line}
    assert loaded
    assert loaded <= set(build().split())


def test_running_a_model_does_not_load_the_high_level_interface(repo_root: Path, model_file: Path) -> None:
    code = (
        "import sys, edgeft.runtime as r; m = r.load(sys.argv[1], n_threads=1)\n"
        "m.chat([{'role': 'user', 'content': 'hi'}], max_new_tokens=2); m.close()\n"
        "assert not {'llama_cpp.llama', 'diskcache', 'multiprocessing', 'asyncio'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(model_file)], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
