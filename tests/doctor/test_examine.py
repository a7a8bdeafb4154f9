"""The whole of `edgeft doctor`: on made-up machines, with children that crash, and once for real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeft.doctor.examine import World, examine, this_world
from edgeft.doctor.finding import Finding, healthy
from edgeft.doctor.libraries import ask_libraries, open_sockets
from edgeft.doctor.processor import check_int8, check_llama, check_processor
from edgeft.errors import RuntimeFault

AVX2 = ("sse41", "avx", "avx2", "fma", "f16c")
TORCH = {"version": "2.13.0", "capability": "AVX2", "threads": 2, "cuda": None, "gpus": [], "sockets": []}
ONNX = {"version": "1.31.1", "providers": ["CPUExecutionProvider"], "telemetry": False, "sockets": []}
LLAMA = {"needs": ["avx2"], "variants": [], "loaded": None, "features": {"AVX2": 1, "AMX": 0}, "sockets": []}
INSTALLED = {"click": "8.5.1", "torch": "2.13.0", "onnxruntime": "1.31.1", "llama-cpp-python": "0.3.36"}


def answering(**answers: Any) -> Any:
    """What stands for the children: scripted answers."""
    scripted = {"torch": TORCH, "onnxruntime": ONNX, "llama_cpp": LLAMA} | answers
    return lambda names: {name: scripted[name] for name in names}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A healthy machine."""
    return World(
        environment={},
        python=(3, 11, 7),
        executable="python",
        requirements=["click>=8.1", 'torch>=2.9; extra == "train"'],
        version=INSTALLED.get,
        which=lambda name: f"/usr/bin/{name}",
        ask=answering(),
        cpu="EPYC",
        cores=2,
        instruction_sets=AVX2,
        root=tmp_path,
        cache=tmp_path / "cache",
        places={"runs": (Path("runs"), 8e10, True)},
    )


def by_topic(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def test_a_healthy_machine_is_healthy(world: World) -> None:
    findings = examine(world)
    assert healthy(findings)
    assert len(by_topic(findings)) == len(findings)
    for finding in findings:
        json.dumps(finding.facts)


@pytest.mark.parametrize(
    ("changes", "topic", "said"),
    [
        ({"python": (3, 10, 1)}, "python", "3.11 or newer"),
        ({"places": {"runs": (Path("runs"), 1e3, True)}}, "disk", "full"),
        ({"version": (INSTALLED | {"torch": "2.1"}).get}, "train", "torch 2.1 (needs >=2.9)"),
        ({"version": (INSTALLED | {"click": "7"}).get}, "packages", "click 7 (needs >=8.1)"),
        ({"ask": answering(torch=RuntimeFault("torch was killed by SIGILL"))}, "torch", "killed by SIGILL"),
        ({"ask": answering(onnxruntime=RuntimeFault("no libstdc++"))}, "onnxruntime", "no libstdc++"),
        ({"ask": answering(llama_cpp=RuntimeFault("no avx512f"))}, "llama-cpp-python", "0.3.36: no avx512f"),
    ],
)
def test_what_is_broken_has_advice(world: World, changes: dict[str, Any], topic: str, said: str) -> None:
    findings = examine(replace(world, **changes))
    assert [finding.topic for finding in findings if finding.state == "broken"] == [topic]
    broken = by_topic(findings)[topic]
    assert said in f"{broken.text} {broken.advice}"
    assert broken.advice


def test_libraries_that_are_not_installed_are_not_asked(world: World) -> None:
    asked: list[str] = []

    def ask(names: Sequence[str]) -> dict[str, Any]:
        asked.extend(names)
        return {}

    bare = replace(world, version={"click": "8.5.1"}.get, ask=ask)
    findings = by_topic(examine(bare))
    assert asked == []
    assert healthy(list(findings.values()))
    assert not {"torch", "onnxruntime", "llama-cpp-python", "int8"} & set(findings)


H200 = {"name": "NVIDIA H200", "memory_bytes": 150_000_000_000, "capability": (9, 0)}


@pytest.mark.parametrize(
    ("sets", "environment", "gpus", "said"),
    [
        (AVX2, {}, [], "auto is float32: this processor has no bfloat16 products (avx2)"),
        ((*AVX2, "avx512f", "avx512_bf16"), {}, [], "auto is bfloat16: this processor multiplies it (avx512_bf16)"),
        ((*AVX2, "avx512f"), {}, [], "auto is measured by the first run: this processor has avx512f"),
        (
            (*AVX2, "avx512f", "avx512_bf16"),
            {"ATEN_CPU_CAPABILITY": "avx2"},
            [],
            "auto is float32: ATEN_CPU_CAPABILITY",
        ),
        (AVX2, {}, [H200], "auto is bfloat16: the GPU has compute capability 9.0"),
    ],
)
def test_the_type_that_training_computes_in(
    world: World, sets: tuple[str, ...], environment: dict[str, str], gpus: list[dict[str, Any]], said: str
) -> None:
    changed = replace(
        world, instruction_sets=sets, environment=environment, ask=answering(torch=TORCH | {"gpus": gpus})
    )
    assert said in by_topic(examine(changed))["torch_dtype"].text


@pytest.mark.parametrize(
    ("present", "exact"),
    [
        (AVX2, False),
        ((*AVX2, "avx512f"), False),
        ((*AVX2, "avx_vnni"), True),
        ((*AVX2, "avx512f", "avx512_vnni"), True),
        (("neon", "dotprod"), True),
        ((), None),
    ],
)
def test_int8(present: tuple[str, ...], exact: bool | None) -> None:
    assert check_int8(present).facts == {"sums_in_32_bits": exact}


def test_switches_that_hide_instructions_are_shown() -> None:
    found = check_processor("EPYC", 1, AVX2, {"ATEN_CPU_CAPABILITY": "default"})
    assert found.state == "note"
    assert "EPYC, 1 core: sse41 avx avx2 fma f16c; ATEN_CPU_CAPABILITY=default hides some" in found.text


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (LLAMA, "0.3.36, compiled for processors like this one (AVX2); an older one may not run it"),
        (LLAMA | {"variants": ["haswell", "x64"], "loaded": "haswell"}, "portable: kernels haswell of 2 kinds (AVX2)"),
    ],
)
def test_the_build_of_llama_cpp_is_told(answer: dict[str, Any], said: str) -> None:
    assert said in check_llama("0.3.36", answer).text


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (f"import os; os.kill(os.getpid(), {int(signal.SIGILL)})", "torch was killed by SIGILL"),
        ("import sys; sys.exit('no libgomp')", "no libgomp"),
        ("print('hello')", "not JSON"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_a_child_that_dies_is_a_sentence(code: str, said: str) -> None:
    answer = ask_libraries(["torch"], command=(sys.executable, "-c", code), timeout_s=1 if "sleep" in code else 60)
    assert isinstance(answer["torch"], RuntimeFault)
    assert said in str(answer["torch"])


def test_sockets_are_those_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "fd").mkdir()
    (tmp_path / "net").mkdir()
    for number, link in enumerate(["/dev/null", "socket:[777]", "socket:[778]"]):
        (tmp_path / "fd" / str(number)).symlink_to(link)
    row = "0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 {} 1 0"
    (tmp_path / "net/tcp").write_text("header\n" + row.format(777) + "\n" + row.format(999) + "\n")
    assert open_sockets(tmp_path) == ["tcp"]  # 778 is no internet socket, 999 another process'
    assert open_sockets(tmp_path / "missing") == []


@pytest.mark.slow
def test_the_doctor_runs_here(repo_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeft", "doctor", "--json", "--workdir", str(tmp_path)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    found = {finding["topic"]: finding for finding in report["findings"]}
    assert report["healthy"]
    assert found["llama-cpp-python"]["facts"]["features"]
    assert found["torch"]["facts"]["capability"]
    assert found["processor"]["facts"]["cores"] == len(os.sched_getaffinity(0))
    assert found["network"]["facts"]["sockets"] == {"torch": [], "onnxruntime": [], "llama_cpp": []}


def test_this_world_starts_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from edgeft.doctor.examine import this_world; this_world(Path('.'))\n"
    code += "assert not {'numpy', 'torch', 'onnxruntime', 'llama_cpp', 'pydantic'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert this_world(tmp_path).places["runs"][2]
