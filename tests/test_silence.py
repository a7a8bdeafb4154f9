"""No dependency talks: whole runs and the runtime ask the kernel for no internet socket, and leave no file elsewhere.

It is the system call that is watched, not a library: the next one that reports its users is found as well.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgeft.machine import silence
from tests.helpers.network import Watched, can_watch, watch
from tests.tiny import make_tiny_llama
from tests.tiny_encoder import make_tiny_encoder

EDGEFT = [sys.executable, "-m", "edgeft"]
# Telemetry is sent some seconds after a session was opened; onnxruntime 1.31 asks for its first socket within three.
LINGER_S = 5
ANSWER = f"""
import sys, time
from edgeft import runtime
for path in sys.argv[1:]:
    with runtime.load(path) as model:
        model.classify(["turn on"]) if hasattr(model, "labels") else model.chat([{{"role": "user", "content": "on"}}])
time.sleep({LINGER_S})
"""
PLUGIN = """
def test_file(edgeft):
    assert edgeft.bench({file!r}, prompts=1, repetitions=1, n_gen=4)
"""
GENERATIVE = """
name: tiny
model: {base: base}
data: {train: train.jsonl, validation: train.jsonl, test: train.jsonl, max_length: 64, allow: [E503]}
train: {method: lora, lora: {r: 2}, num_train_epochs: 1, batch_tokens: 128}
export: {gguf: [{ftype: F16}, {ftype: Q8_0}], onnx: [{dtype: fp32, layout: plain}]}
parity: {prompts: 2, tolerance: {q8_0: {top1: 0.1, kl_mean: 9}, f16: {top1: 0.1, kl_mean: 9}}}
bench: {metrics: [exact_match], latency: {prompts: 1, repetitions: 1}}
gate: {size_bytes: "<= 9MB"}
"""
CLASSIFIER = """
name: intents
model: {base: encoder}
data: {train: labels.jsonl, validation: labels.jsonl, test: labels.jsonl, max_length: 16, allow: [E503]}
train: {objective: classification, method: full, num_train_epochs: 1, batch_tokens: 64}
export: {encoder: [{dtype: fp32}, {dtype: int8}]}
parity: {prompts: 2, tolerance: {q8_0: {top1: 0.0, kl_mean: 9}}}
bench: {metrics: [label_accuracy], latency: {prompts: 1, repetitions: 1}}
gate: {size_bytes: "<= 9MB"}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_watch(), reason="this system lets no process watch its children's system calls"),
]


@dataclass
class Place:
    """Folders of their own for the work, the home and temporary files of the commands of a test."""

    work: Path
    home: Path
    temporary: Path

    def watch(self, *command: str) -> Watched:
        """Run it with nothing in the environment that keeps libraries silent."""
        kept = {name: value for name, value in os.environ.items() if name not in silence.TELEMETRY_OFF}
        kept = {name: value for name, value in kept.items() if not name.startswith(("HF_", "XDG_"))}
        own = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        root = str(Path(__file__).resolve().parent.parent)
        return watch(command, cwd=self.work, environment=kept | own | {"PYTHONPATH": root})

    def files(self) -> Iterator[str]:
        """What lies in the home and among temporary files."""
        for folder in (self.home, self.temporary):
            yield from (str(path.relative_to(folder.parent)) for path in folder.rglob("*") if not path.is_dir())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("silence")
    made = Place(root / "work", root / "home", root / "tmp")
    for folder in (made.work, made.home, made.temporary):
        folder.mkdir()
    make_tiny_llama(made.work / "base")
    make_tiny_encoder(made.work / "encoder", "bert")
    chat = [[{"role": "user", "content": f"turn on {n}, mail a@b.example"}, _said("done")] for n in range(12)]
    labels = [[{"role": "user", "content": text}, _said(text.split()[1])] for text in ("lamp on", "song off") * 6]
    for name, rows in (("train", chat), ("labels", labels)):
        lines = "".join(json.dumps({"messages": row}) + "\n" for row in rows)
        (made.work / f"{name}.jsonl").write_text(lines, "utf-8")
    (made.work / "tiny.yaml").write_text(GENERATIVE, "utf-8")
    (made.work / "intents.yaml").write_text(CLASSIFIER, "utf-8")
    return made


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def runs(place: Place) -> dict[str, Watched]:
    return {name: place.watch(*EDGEFT, "run", f"{name}.yaml") for name in ("tiny", "intents")}


@pytest.fixture(scope="module")
def shipped(place: Place, runs: dict[str, Watched]) -> dict[str, str]:
    """{format: file or folder}, relative to the work folder."""
    assert all(run.returncode == 0 for run in runs.values()), [run.output for run in runs.values()]
    folder = place.work / "runs"
    files = {"gguf": "tiny/export/*Q8_0.gguf", "onnx": "tiny/export/*fp32*", "encoder": "intents/export/int8"}
    return {name: str(next(folder.glob(pattern)).relative_to(place.work)) for name, pattern in files.items()}


@pytest.mark.parametrize("name", ["tiny", "intents"])
def test_a_run_opens_no_socket(runs: dict[str, Watched], name: str) -> None:
    assert runs[name].returncode == 0, runs[name].output
    assert runs[name].sockets == []


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "{gguf}", "--synthetic", "8:4", "--prompts", "1", "--repetitions", "1"],
        ["bench", "{onnx}", "--synthetic", "8:4", "--prompts", "1", "--repetitions", "1"],
        ["bench", "{encoder}", "--data", "labels.jsonl", "--prompts", "1", "--repetitions", "1"],
        ["inspect", "{gguf}", "--load"],
        ["inspect", "{onnx}", "--load"],
        ["data", "check", "train.jsonl", "--pii"],
        ["report", "runs/tiny"],
        ["run", "tiny.yaml", "--dry-run"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_command_opens_no_socket(place: Place, shipped: dict[str, str], words: list[str]) -> None:
    done = place.watch(*EDGEFT, *(word.format(**shipped) for word in words))
    assert done.returncode == 0, done.output
    assert done.sockets == []


def test_an_application_opens_no_socket(place: Place, shipped: dict[str, str]) -> None:
    done = place.watch(sys.executable, "-c", ANSWER, *shipped.values())
    assert done.returncode == 0, done.output
    assert done.sockets == []


def test_the_pytest_plugin_opens_no_socket(place: Place, shipped: dict[str, str]) -> None:
    (place.work / "test_shipped.py").write_text(PLUGIN.format(file=shipped["onnx"]), "utf-8")
    plugin = ["-p", "edgeft.pytest_plugin"] if not _is_installed() else []
    done = place.watch(sys.executable, "-m", "pytest", "-q", *plugin, "test_shipped.py")
    assert done.returncode == 0, done.output
    assert done.sockets == []


def _is_installed() -> bool:
    from importlib import metadata

    return any(point.name == "edgeft" for point in metadata.entry_points(group="pytest11"))


def test_nothing_is_left_outside_the_work_folder(place: Place, shipped: dict[str, str]) -> None:
    """After everything above: home and temporary files hold edgeft's own cache and no more."""
    place.watch(sys.executable, "-c", ANSWER, *shipped.values())
    assert [path for path in place.files() if not path.startswith("home/.cache/edgeft/")] == []


def test_a_socket_of_a_childs_thread_is_seen_and_refused() -> None:
    thread = "import threading, socket; t = threading.Thread(target=socket.socket); t.start(); t.join()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {thread!r}])"
    done = watch([sys.executable, "-c", code])
    assert [line.split(":")[0] for line in done.sockets] == ["AF_INET"]
    assert "Permission denied" in done.output


def test_sockets_within_the_machine_are_left_alone() -> None:
    done = watch([sys.executable, "-c", "import socket; socket.socketpair(); socket.socket(socket.AF_UNIX)"])
    assert (done.returncode, done.sockets, done.output) == (0, [], "")


def test_what_the_user_set_stays() -> None:
    code = (
        "from edgeft.machine.silence import no_telemetry; import os; no_telemetry(); print(os.environ['DO_NOT_TRACK'])"
    )
    environment = os.environ | {"DO_NOT_TRACK": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
