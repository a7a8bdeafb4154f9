"""Disk, memory, GPU, remembered measurements, huge pages and network, on made-up systems."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgeft.doctor.surroundings import (
    check_disk,
    check_gpu,
    check_huge_pages,
    check_measured,
    check_memory,
    check_network,
)

DAY_S = 86400.0


@pytest.mark.parametrize(
    ("free", "writable", "state", "said"),
    [
        (80e9, True, "ok", "runs 80.0 GB free"),
        (3e9, True, "note", "runs 3.0 GB free"),
        (1e8, True, "broken", "/runs (runs) is full"),
        (80e9, False, "broken", "/runs (runs) cannot be written"),
        (None, True, "ok", "runs not known"),
    ],
)
def test_disk(free: float | None, writable: bool, state: str, said: str) -> None:
    found = check_disk({"runs": (Path("/runs"), free, writable), "cache": (Path("/cache"), 9e9, True)})
    assert found.state == state
    assert said in found.text
    assert bool(found.advice) == (state == "broken")


@pytest.mark.parametrize(
    ("total_kib", "free_kib", "limit", "state", "said"),
    [
        (8_000_000, 4_000_000, None, "ok", "4.1 GB of 8.2 GB available"),
        (8_000_000, 4_000_000, "max", "ok", "4.1 GB of 8.2 GB available"),
        (8_000_000, 1_000_000, None, "note", "1.0 GB of 8.2 GB available"),
        (8_000_000, 100_000, None, "broken", "102 MB of 8.2 GB available"),
        (8_000_000, 4_000_000, "1500000000", "note", "1.5 GB of 1.5 GB available"),
        (None, None, None, "note", "not known"),
    ],
)
def test_memory(
    tmp_path: Path, total_kib: int | None, free_kib: int | None, limit: str | None, state: str, said: str
) -> None:
    if total_kib is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/meminfo").write_text(f"MemTotal: {total_kib:9} kB\nMemAvailable: {free_kib:9} kB\n")
    if limit is not None:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
    found = check_memory(tmp_path)
    assert (found.state, said in found.text) == (state, True), found


H200 = {"name": "NVIDIA H200", "memory_bytes": 150e9}


@pytest.mark.parametrize(
    ("torch", "driver", "state", "said"),
    [
        ({"gpus": [H200]}, True, "ok", "NVIDIA H200 (150.0 GB)"),
        ({"gpus": []}, True, "note", "this torch cannot use it"),
        ({"gpus": []}, False, "ok", "none"),
        (None, True, "ok", "none"),
    ],
)
def test_gpu(torch: dict[str, Any] | None, driver: bool, state: str, said: str) -> None:
    found = check_gpu(torch, driver)
    assert (found.state, said in found.text) == (state, True), found


def test_what_was_measured_has_an_age(tmp_path: Path) -> None:
    path = tmp_path / "products-0123456789abcdef.json"
    path.write_text("{}")
    os.utime(path, (1e9, 1e9))
    found = check_measured(tmp_path, now=1e9 + 2.5 * DAY_S)
    assert found.state == "ok"
    assert "products (2.5 days ago)" in found.text
    assert found.facts["age_days"] == {path.name: 2.5}


def test_nothing_measured_and_a_damaged_file(tmp_path: Path) -> None:
    assert "nothing yet" in check_measured(tmp_path / "missing").text
    (tmp_path / "roofline-0123456789abcdef.json").write_text("{")
    found = check_measured(tmp_path)
    assert found.state == "note"
    assert "roofline-0123456789abcdef.json" in found.text


@pytest.mark.parametrize(
    ("setting", "state", "said"),
    [
        ("always [madvise] never", "ok", "madvise"),
        ("always madvise [never]", "note", "switched off"),
        (None, "ok", "not on this system"),
    ],
)
def test_huge_pages(tmp_path: Path, setting: str | None, state: str, said: str) -> None:
    if setting is not None:
        (tmp_path / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True)
        (tmp_path / "sys/kernel/mm/transparent_hugepage/enabled").write_text(f"{setting}\n")
    found = check_huge_pages(tmp_path)
    assert (found.state, said in found.text) == (state, True), found


@pytest.mark.parametrize(
    ("environment", "telemetry", "sockets", "state", "said"),
    [
        ({}, False, {}, "ok", "nothing reaches it"),
        ({}, None, {"torch": []}, "ok", "nothing reaches it"),
        ({"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "https://mirror"}, False, {}, "ok", "nothing reaches it"),
        ({"HF_HUB_OFFLINE": "0"}, False, {}, "note", "HF_HUB_OFFLINE=0: a model's name may be looked up on the hub"),
        ({"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "https://u:p@mirror/x"}, False, {}, "note", "on the hub (mirror)"),
        ({}, True, {}, "note", "onnxruntime's telemetry is on"),
        ({}, False, {"onnxruntime": ["tcp", "udp6"]}, "note", "onnxruntime opened tcp, udp6"),
        ({"HTTPS_PROXY": "http://me:secret@proxy:3128"}, False, {}, "ok", "https_proxy proxy:3128"),
        ({"http_proxy": "http://[broken"}, False, {}, "ok", "http_proxy ?"),
    ],
)
def test_network(
    environment: dict[str, str], telemetry: bool | None, sockets: dict[str, list[str]], state: str, said: str
) -> None:
    found = check_network(environment, telemetry, sockets)
    assert (found.state, said in found.text) == (state, True), found
    assert "secret" not in json.dumps(found.facts) + found.text
    assert "u:p" not in json.dumps(found.facts) + found.text
