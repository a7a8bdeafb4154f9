"""What is known of the machine and of other work on it: from made files of the kernel's formats, and the real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeft.bench import energy, host, memory, noise
from edgeft.errors import UsageError

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
IDLE = {"steal_share": 0.0, "others_share": 0.0}


@linux
def test_memory_of_the_parent_is_not_the_childs() -> None:
    ballast = np.ones(40_000_000)  # 320 MB, touched
    code = (
        "import resource; from edgeft.machine.process import peak_rss_bytes\n"
        "print(peak_rss_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    ours, rusage = map(int, done.stdout.split())
    assert ours < 100e6
    assert rusage > ballast.nbytes  # the trap that `peak_rss_bytes` avoids


def test_host_names_the_machine_but_not_whose() -> None:
    described = host.describe_host()
    assert described["cpu"]
    assert described["n_cores"] >= 1
    assert set(described) == {
        "cpu", "n_cores", "memory_bytes", "os", "python", "governor", "turbo",
        "instruction_sets", "hiding_switches", "kernels",
    }  # fmt: skip


TORCH_SAYS = "import torch; said = torch.backends.cpu.get_cpu_capability()"
LLAMA_SAYS = """
import re
from edgeft.runtime.llama_build import start
from edgeft.runtime.llama_library import llama_cpp
start()
said = " ".join(re.findall(r"(\\w+) = [1-9]", llama_cpp.llama_print_system_info().decode()))
"""


@pytest.mark.parametrize(
    ("module", "library", "says"),
    [pytest.param("torch", "torch", TORCH_SAYS, marks=pytest.mark.slow), ("llama_cpp", "llama.cpp", LLAMA_SAYS)],
)
def test_libraries_that_run_say_what_their_kernels_are(module: str, library: str, says: str) -> None:
    """In a new process: nothing before, the library's own words after."""
    pytest.importorskip(module)
    code = (
        "import json\nfrom edgeft.bench.host import describe_host\nbefore = describe_host()['kernels']\n"
        f"{says}\nprint(json.dumps([before, describe_host()['kernels'], said]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    before, after, said = json.loads(done.stdout.splitlines()[-1])
    assert before == {}
    assert said
    assert after == {library: said}


@linux
def test_pinning_binds_the_process_and_refuses_cores_it_does_not_have() -> None:
    core = min(os.sched_getaffinity(0))
    code = f"import os; from edgeft.bench.host import pin; pin([{core}]); print(os.sched_getaffinity(0))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == f"{{{core}}}\n"
    with pytest.raises(UsageError, match="may not use core 100000; it may use"):
        host.pin([core, 100000])


@linux
def test_pss_counts_what_this_process_touches() -> None:
    before = memory.pss_bytes()
    ballast = np.ones(4_000_000)
    after = memory.pss_bytes()
    assert before is not None
    assert after is not None
    assert after - before == pytest.approx(ballast.nbytes, rel=0.1)
    assert memory.pss_bytes(Path("no such file")) is None


@linux
def test_the_page_cache_is_seen_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())  # only clean pages can be dropped
    assert memory.cached_share([path]) == 1.0
    assert memory.evict([path])
    share = memory.cached_share([path])
    assert share is not None
    assert share < 1.0 or tmp_path.stat().st_dev == Path("/dev/shm").stat().st_dev  # tmpfs is its own cache


def test_sizes_of_a_folder(tmp_path: Path) -> None:
    for name, size in (("model.onnx", 10), ("model.onnx.data", 200), ("tokenizer.json", 3000)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert (memory.size_bytes(tmp_path), memory.bundle_bytes(tmp_path)) == (210, 3210)
    assert (memory.size_bytes(tmp_path / "model.onnx"), memory.bundle_bytes(tmp_path / "model.onnx")) == (10, 10)


@pytest.mark.parametrize(
    ("watched", "medians", "reasons"),
    [
        (IDLE, [10.0, 10.4], 0),
        (IDLE, [10.0], 0),
        (IDLE, [], 0),
        (IDLE, [10.0, 10.6], 1),
        ({"steal_share": 0.02, "others_share": 0.0}, [10.0, 10.0], 1),
        ({"steal_share": 0.02, "others_share": 0.3}, [10.0, 10.6], 3),
        ({"steal_share": None, "others_share": None}, [10.0, 10.0], 0),
        ({}, [], 0),
    ],
)
def test_the_rule_of_noise(watched: dict[str, float | None], medians: list[float], reasons: int) -> None:
    found = noise.judge(watched, medians)
    assert (len(found["reasons"]), found["noisy"]) == (reasons, reasons > 0)


@linux
def test_shares_of_the_processor_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1000 ticks 600 are idle, 20 waiting, 80 stolen and 300 busy; this process used next to none of them."""
    monkeypatch.setattr(noise, "SHORTEST_S", 0.0)
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 0 5000 0 0 0 10 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    watch = noise.Watch(stat)
    stat.write_text("cpu  300 50 40 5600 20 5 5 90 7 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    watched = watch.stop()
    assert watched["steal_share"] == 0.08
    assert watched["others_share"] == pytest.approx(0.3, abs=0.01)
    assert noise.Watch(tmp_path / "nothing").stop()["steal_share"] is None


def test_energy_from_counters_that_wrap(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": ("package-0", 900), "intel-rapl:0:0": ("core", 1), "intel-rapl:1": ("package-1", 50)}
    for zone, (name, start) in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text(str(start))
        (tmp_path / zone / "max_energy_range_uj").write_text("1000")
    meter = energy.meter(gpu=False, powercap=tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")  # wrapped: 200 used
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("80")
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("999")  # a part of package 0
    meter.tick()
    meter.tick()
    assert meter.to_json() == {"joules": 230e-6, "sources": ["RAPL package-0", "RAPL package-1"], "absent": ""}


def test_energy_that_is_not_counted_says_so(tmp_path: Path) -> None:
    found = energy.meter(gpu=False, powercap=tmp_path).to_json()
    assert found["joules"] is None
    assert "no package counters" in found["absent"]


class FakeNvml:
    """Two cards; each reading of the first is 5 mJ more."""

    class NVMLError(Exception):
        pass

    def __init__(self, error: str = "") -> None:
        self.error, self.used_mj = error, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if self.error:
            raise self.NVMLError(self.error)

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetTotalEnergyConsumption(self, card: int) -> int:  # noqa: N802
        self.used_mj += 5 if card == 0 else 0
        return self.used_mj if card == 0 else 7


def test_energy_of_graphics_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    meter = energy.meter(gpu=True, powercap=tmp_path)
    meter.tick()
    assert meter.to_json()["joules"] == 0.005
    assert meter.to_json()["sources"] == ["NVML GPU 0", "NVML GPU 1"]
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("driver not loaded"))
    assert "driver not loaded" in energy.meter(gpu=True, powercap=tmp_path).to_json()["absent"]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pynvml is not installed" in energy.meter(gpu=True, powercap=tmp_path).to_json()["absent"]
