"""The example of docs/runtime.md runs as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path


def test_the_example_runs(repo_root: Path, model_file: Path, tmp_path: Path) -> None:
    text = (repo_root / "docs" / "runtime.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copy(model_file, tmp_path / "home.gguf")
    environment = {"PYTHONPATH": str(repo_root), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r'\{ ?"device" ?: ?"(light|radio)" ?, ?"on" ?: ?(true|false) ?\}', done.stdout)
