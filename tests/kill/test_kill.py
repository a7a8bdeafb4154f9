"""SIGKILL and SIGINT at random moments of a real run: the next run goes on, and the files are the same."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeft.artifact import read_artifact
from tests.tiny import make_tiny_llama

pytest.importorskip("torch")
pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

RECIPE = """\
name: tiny
seed: 1
model: {base: base}
data: {train: train.jsonl, validation: test.jsonl, test: test.jsonl, max_length: 128, allow: [E503]}
train: {learning_rate: 1e-2, num_train_epochs: 10, batch_tokens: 128, save_steps: 3, num_threads: 1}
export: {gguf: [{ftype: F16}, {ftype: Q8_0}]}
parity: {prompts: 2, n_gen: 4, tolerance: {q8_0: {top1: 0.5, kl_mean: 1.0}}}
bench:
  limit: 4
  max_new_tokens: 8
  n_ctx: 128
  n_threads: 1
  few_shot: 1
  baseline_limit: 2
  latency: {prompts: 1, n_gen: 4, repetitions: 1, warmup: 0}
gate: {size_bytes: "<= 1MB"}
"""
WORDS = ("on", "off", "up", "down", "left", "right", "red", "blue", "ten", "two")
KILLS = 10
COMPARED = (".safetensors", ".gguf", ".npz", "provenance.json", "verdict.json")


class Server:
    """Forks of `forking.py`, one at a time."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("forking.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert self.answer() == "ready"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, words: list[str], *, send: signal.Signals | None = None, after_s: float = 0.0) -> int:
        """Run `edgeft WORDS`; `send` a signal after so many seconds if it still runs. Returns the exit code."""
        assert self.process.stdin is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        pid = int(self.answer())
        ended = threading.Event()

        def strike() -> None:
            if send is not None and not ended.wait(after_s):
                os.kill(pid, send)

        striker = threading.Thread(target=strike)
        striker.start()
        code = int(self.answer())
        ended.set()
        striker.join()
        return code

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_tiny_llama(folder / "base")
    (folder / "recipe.yaml").write_text(RECIPE)
    for name, count in (("train.jsonl", 24), ("test.jsonl", 4)):
        lines = [example(WORDS[i % 10], WORDS[(3 * i + 1) % 10]) for i in range(count)]
        (folder / name).write_text("\n".join(lines))
    return folder


def example(question: str, answer: str) -> str:
    return json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})


def words(project: Path, workdir: Path) -> list[str]:
    return ["run", str(project / "recipe.yaml"), "--workdir", str(workdir)]


def results(workdir: Path) -> dict[str, str]:
    """{stage/file: sha256} of what must be the same, from verified manifests."""
    found = {}
    links = [path for path in sorted((workdir / "tiny").iterdir()) if path.is_dir()]  # beside them lies status.json
    for link in links:
        for name, record in read_artifact(link).files.items():
            if name.endswith(COMPARED):
                found[f"{link.name}/{name}"] = record.sha256
    return found


@pytest.fixture(scope="module")
def undisturbed(project: Path) -> tuple[dict[str, str], Path]:
    """What `python -m edgeft run` makes, in a process of its own."""
    workdir = project / "undisturbed"
    command = [sys.executable, "-m", "edgeft", *words(project, workdir), "--json"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["passed"] is True
    found = results(workdir)
    assert {name.rpartition(".")[2] for name in found} == {"safetensors", "gguf", "npz", "json"}
    return found, workdir


def test_ten_kills(server: Server, project: Path, undisturbed: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    expected, _ = undisturbed
    began = time.monotonic()
    assert server.run(words(project, tmp_path / "whole")) == 0
    whole_s = time.monotonic() - began
    assert results(tmp_path / "whole") == expected
    moments = random.Random(20240607)
    stage_folders: set[str] = set()
    for kill in range(KILLS):
        workdir = tmp_path / f"kill-{kill}"
        after_s = whole_s * (kill + moments.random()) / KILLS
        server.run(words(project, workdir), send=signal.SIGKILL, after_s=after_s)
        stage_folders |= {path.name.split("-")[0] for path in workdir.glob("store/*.work")}
        assert server.run(words(project, workdir)) == 0
        assert results(workdir) == expected, f"killed after {after_s:.2f} of {whole_s:.2f} s"
        assert list(workdir.glob("store/*.work")) == []
        shutil.rmtree(workdir)
    assert stage_folders, "no kill hit a stage at work"


def test_kills_on_top_of_each_other(
    server: Server, project: Path, undisturbed: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    moments = random.Random(7)
    for _ in range(KILLS):
        server.run(words(project, tmp_path), send=signal.SIGKILL, after_s=moments.uniform(0.0, 1.0))
    assert server.run(words(project, tmp_path)) == 0
    assert results(tmp_path) == undisturbed[0]


def test_an_interrupt_is_no_error(
    server: Server, project: Path, undisturbed: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    code = server.run(words(project, tmp_path), send=signal.SIGINT, after_s=0.8)
    assert code in (130, 0)  # 0 where a very fast machine was done before
    assert server.run(words(project, tmp_path)) == 0
    assert results(tmp_path) == undisturbed[0]


def test_nothing_to_do_loads_nothing_heavy(project: Path, undisturbed: tuple[dict[str, str], Path]) -> None:
    """`edgeft run` again: up to date, by reading alone."""
    code = (
        "import sys\nfrom edgeft.cli import main\ntry:\n"
        f"    main({words(project, undisturbed[1])!r})\n"
        "except SystemExit as ended:\n    print(ended.code, sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "up to date\n"
    last = done.stdout.splitlines()[-1]
    assert last.startswith("0 ")
    for heavy in ("torch", "transformers", "numpy", "rich", "llama_cpp"):
        assert f"'{heavy}'" not in last


def test_a_damaged_artifact_is_made_again(
    server: Server, project: Path, undisturbed: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    expected, workdir = undisturbed
    shutil.copytree(workdir, tmp_path / "copy", symlinks=True)
    (path,) = (tmp_path / "copy" / "store").glob("merge-*/model.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert server.run(words(project, tmp_path / "copy")) == 0
    assert results(tmp_path / "copy") == expected
    assert list((tmp_path / "copy" / "store").glob("merge-*.damaged"))


def test_commands_that_need_no_recipe(
    server: Server, project: Path, undisturbed: tuple[dict[str, str], Path], tmp_path: Path
) -> None:
    folder, test = undisturbed[1] / "tiny", str(project / "test.jsonl")
    files, bench = tmp_path / "files", str(tmp_path / "bench.json")
    f16, q8_0 = str(files / "merge-F16.gguf"), str(files / "merge-Q8_0.gguf")
    quick = ["--max-new-tokens", "4", "--n-ctx", "128", "--prompts", "1", "--n-gen", "2", "--repetitions", "1"]
    merged = str(folder / "merge")
    for code, line in (
        (0, ["export", merged, "--ftype", "F16", "--ftype", "Q8_0", "--out", str(files)]),
        (0, ["parity", merged, f16, "--n-gen", "2"]),
        (3, ["parity", str(project / "base"), f16, "--n-gen", "2"]),  # the file is not the base model
        (0, ["bench", q8_0, "--data", test, *quick, "--out", bench]),
        (0, ["gate", bench, "--budget", "size_bytes <= 1MB"]),
        (3, ["gate", bench, "--budget", "size_bytes <= 1KB"]),
        (0, ["gate", str(folder), "--budget", "exact_match >= 0", "--budget", "kl_mean <= 1"]),
        (0, ["report", str(folder)]),
        (2, ["report", str(project / "base")]),
        (1, ["export", str(project / "nowhere"), "--out", str(files)]),
    ):
        assert server.run(line) == code, line


def test_stages_read_only_what_their_key_covers(project: Path, tmp_path: Path) -> None:
    """Every top-level key a stage reads is among the sections its key is made from."""
    from edgeft.console import silent_log
    from edgeft.pipeline import StageFunction, run
    from edgeft.plan import SPINE
    from edgeft.recipe import Recipe
    from edgeft.recipe_reader import read_recipe
    from edgeft.store import Store

    read: set[str] = set()

    class Spied(Recipe):
        def __getattribute__(self, name: str) -> Any:
            if name in Recipe.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    plain = read_recipe(project / "recipe.yaml")
    spied = Spied.build(plain.model_dump(), plain.folder)
    beyond: dict[str, set[str]] = {}

    def spying(stage: str, sections: tuple[str, ...]) -> StageFunction:
        def function(recipe: Recipe, *rest: Any) -> dict[str, float]:
            import importlib

            read.clear()
            metrics: dict[str, float] = importlib.import_module(f"edgeft.stages.{stage}").run(recipe, *rest)
            beyond[stage] = read - {section.split(".")[0] for section in sections}
            return metrics

        return function

    stages = {step.stage: spying(step.stage, step.sections) for step in SPINE}
    run(spied, Store(tmp_path), silent_log(), stages=stages)
    assert {stage: keys for stage, keys in beyond.items() if keys} == {}
    assert len(beyond) == len(SPINE)
