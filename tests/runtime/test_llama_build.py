"""What llama.cpp was compiled for: made-up libraries, and the one that is installed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeft.errors import RuntimeFault
from edgeft.machine.instruction_sets import instruction_sets
from edgeft.runtime.llama_build import NEEDED, SINGLE, LlamaBuild, check_build, llama_build

AVX2 = ("sse41", "avx", "avx2", "fma", "f16c")
HEADER = "ggml_cpu_has_{}"


def compiled(folder: Path, features: set[str]) -> Path:
    """A folder with kernels that say they were compiled with `features`, by ggml's names."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler here")
    source = folder / "kernels.c"
    source.write_text(
        "".join(f"int {HEADER.format(name)}(void) {{ return {name in features:d}; }}\n" for name in NEEDED)
    )
    name = SINGLE.get(sys.platform, "libggml-cpu.so")
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(folder / name)], check=True)
    return folder


@pytest.mark.parametrize(
    ("features", "needs"),
    [
        (set(), ()),
        ({"avx", "avx2", "f16c", "fma"}, ("avx", "avx2", "f16c", "fma")),
        ({"avx2", "avx512", "avx512_vnni"}, ("avx2", "avx512f", "avx512_vnni")),
        ({"neon", "fp16_va", "dotprod", "matmul_int8"}, ("neon", "fp16", "dotprod", "i8mm")),
    ],
)
def test_one_kind_of_kernels_tells_what_it_needs(tmp_path: Path, features: set[str], needs: tuple[str, ...]) -> None:
    assert llama_build(compiled(tmp_path, features)) == LlamaBuild(needs)


@pytest.mark.parametrize(
    ("names", "build"),
    [
        (
            ["libggml-cpu-haswell.so", "libggml-cpu-haswell.so.0.25.3", "libggml-cpu-x64.so", "libggml-base.so"],
            LlamaBuild(variants=("haswell", "x64")),
        ),
        (
            ["libggml-cpu-armv8.0_1.so", "libggml-cpu-armv8.2_3.so"],
            LlamaBuild(variants=("armv8.0_1", "armv8.2_3")),
        ),
        (["ggml-cpu-alderlake.dll"], LlamaBuild(variants=("alderlake",))),
        (["libggml.so"], LlamaBuild()),
    ],
)
def test_a_portable_build_has_variants(tmp_path: Path, names: list[str], build: LlamaBuild) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert llama_build(tmp_path) == build


@pytest.mark.parametrize(
    ("needs", "present", "missing"),
    [
        (AVX2, AVX2, None),
        ((*AVX2, "avx512f", "avx512_vnni"), AVX2, "no avx512f, avx512_vnni"),
        (("avx",), ("sse41",), "no avx"),
        (("avx512f",), (), None),  # a system that does not tell
        ((), AVX2, None),
    ],
)
def test_a_build_for_another_processor_is_refused(
    needs: tuple[str, ...], present: tuple[str, ...], missing: str | None
) -> None:
    if missing is None:
        check_build(LlamaBuild(needs), present)
        return
    with pytest.raises(
        RuntimeFault, match=f"compiled for another processor: this one has {missing}, .*SIGILL.*make setup"
    ):
        check_build(LlamaBuild(needs), present)


def test_the_installed_one_runs_and_tells() -> None:
    code = (
        "import json; from edgeft.runtime.llama_build import *\n"
        "start(); start(); try_products()\n"
        "build = llama_build(); print(json.dumps([build.needs, build.variants, features(), loaded_variant()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needs, variants, features, loaded = json.loads(done.stdout)
    assert done.stderr == ""
    assert bool(needs) != bool(variants)
    assert features
    assert loaded in variants if variants else loaded is None
    assert not set(needs) - set(instruction_sets())
    told = {NEEDED[name.lower()] for name in features if name.lower() in NEEDED}  # llama.cpp's own words
    assert not needs or told <= set(needs)
