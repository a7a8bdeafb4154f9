"""Stored baselines: kept apart by machine, refused where broken."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgeft.bench.baseline import Baseline, baseline_path, fingerprint, save_baseline
from edgeft.bench.budgets import parse_budget
from edgeft.bench.host import describe_host
from edgeft.errors import ArtifactError, UsageError

HOST = {
    "cpu": "A", "instruction_sets": ["avx", "avx2"], "n_cores": 4, "os": "Linux 6.1.0 x86_64",
    "backend": {"llama-cpp-python": "0.3.36"}, "kernels": {"llama.cpp": "AVX AVX2"},
}  # fmt: skip
SPEED = parse_budget("decode_tokens_per_s", ">= 1x baseline")
BYTES = parse_budget("size_bytes", "<= 1x baseline")


def test_machines_share_a_file_and_never_a_number(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "main.json"
    other = HOST | {"n_cores": 8}
    save_baseline(path, {"decode_tokens_per_s": 50.0, "size_bytes": 7.0}, HOST, file="m.gguf")
    save_baseline(path, {"decode_tokens_per_s": 90.0, "size_bytes": 8.0}, other, file="m.gguf")
    assert Baseline.read(path, HOST).value(SPEED) == (50.0, "")
    assert Baseline.read(path, other).value(SPEED) == (90.0, "")
    third = Baseline.read(path, HOST | {"cpu": "C"})
    assert third.value(SPEED)[0] is None
    first = "A, avx avx2, 4 cores, Linux x86_64, llama-cpp-python 0.3.36; llama.cpp: AVX AVX2"
    assert f"{first}; A, avx avx2, 8 cores" in third.value(SPEED)[1]
    assert third.value(BYTES) == (8.0, "")  # bytes compare with whatever was saved last
    save_baseline(path, {"decode_tokens_per_s": 51.0, "size_bytes": 9.0}, HOST, file="m.gguf")
    assert Baseline.read(path, HOST).value(SPEED) == (51.0, "")
    assert third.read(path, HOST | {"cpu": "C"}).value(BYTES) == (9.0, "")
    assert len(json.loads(path.read_text())["hosts"]) == 2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"cpu": "B"}, False),
        ({"instruction_sets": ["avx"]}, False),
        ({"kernels": {"llama.cpp": "AVX"}}, False),
        ({"hiding_switches": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}, True),  # of torch alone, which measures no file
        ({"n_cores": 8}, False),
        ({"os": "Darwin 24.0 arm64"}, False),
        ({"backend": {"llama-cpp-python": "0.3.37"}}, False),
        ({"os": "Linux 6.8.0-41 x86_64"}, True),
        ({"memory_bytes": 1, "governor": "powersave", "load_average_before": 3.0}, True),
    ],
)
def test_what_makes_another_machine(change: dict[str, Any], same: bool) -> None:
    assert (fingerprint(HOST | change) == fingerprint(HOST)) is same


def test_a_baseline_of_before_instruction_sets_were_recorded_is_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    known = {name: HOST[name] for name in ("cpu", "n_cores", "backend")} | {"os": "Linux x86_64"}
    entry = {"host": known, "file": "m.gguf", "metrics": {"decode_tokens_per_s": 50.0, "size_bytes": 7.0}}
    path.write_text(json.dumps({"format": 1, "hosts": {"0123456789abcdef": entry}}))
    value, why = Baseline.read(path, HOST).value(SPEED)
    assert value is None
    assert "A, instruction sets not recorded, 4 cores" in why
    assert "instruction sets or builds do not compare" in why
    assert Baseline.read(path, HOST).value(BYTES) == (7.0, "")


def test_the_name_of_the_machine_is_not_stored(tmp_path: Path) -> None:
    import platform

    save_baseline(tmp_path / "b.json", {"size_bytes": 1.0}, describe_host() | {"node": platform.node()}, file="m")
    stored = json.loads((tmp_path / "b.json").read_text())["hosts"].popitem()[1]
    assert set(stored["host"]) == {"cpu", "instruction_sets", "n_cores", "os", "backend", "kernels"}


def test_energy_is_of_the_machine_as_well(tmp_path: Path) -> None:
    save_baseline(tmp_path / "b.json", {"energy_j_per_token": 1.0}, HOST | {"cpu": "B"}, file="m")
    value, why = Baseline.read(tmp_path / "b.json", HOST).value(parse_budget("energy_j_per_token", "<= baseline"))
    assert value is None
    assert "another machine" in why


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file.*save a baseline with edgeft bench --save-baseline"),
        ("oops", "not valid JSON"),
        ("[]", "not a baseline"),
        ('{"format": 1, "hosts": {}}', "not a baseline"),
        ('{"format": 2, "hosts": {"a": {"host": {}, "metrics": {}}}}', "not a baseline"),
        ('{"format": 1, "hosts": {"a": {"host": {}}}}', "not a baseline"),
    ],
)
def test_a_broken_baseline(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "main.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtifactError, match=message):
        Baseline.read(path, HOST)


def test_nothing_measured_is_no_baseline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing was measured"):
        save_baseline(tmp_path / "b.json", {"ttft_ms_p50": float("nan")}, HOST, file="m")
    assert not (tmp_path / "b.json").exists()


def test_names() -> None:
    assert baseline_path("main") == Path("baselines/main.json")
    assert baseline_path("ci/x.json") == Path("ci/x.json")
    for name in ("", "a/b", "..", ".hidden", "c:x"):
        with pytest.raises(UsageError, match="not a name for a baseline"):
            baseline_path(name)
