"""All checks of `edgeft doctor`, over what this machine is made to look like by `World`: tests give another one."""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeft.bench.host import describe_host
from edgeft.bench.remembered import cache_folder
from edgeft.doctor import packages, processor, surroundings
from edgeft.doctor.finding import Finding
from edgeft.doctor.libraries import DISTRIBUTIONS, Answer, ask_libraries
from edgeft.errors import EdgeftError
from edgeft.machine.compute_type import ComputeType, by_capability
from edgeft.machine.cores import usable_cores
from edgeft.machine.instruction_sets import hiding_switches, instruction_sets

DRIVER = "proc/driver/nvidia/version"


@dataclass(frozen=True)
class World:
    """Everything the checks look at. `root` stands for `/`, `places` as `surroundings.check_disk` takes them."""

    environment: Mapping[str, str]
    python: tuple[int, int, int]
    executable: str
    requirements: Sequence[str]
    version: packages.Version
    which: packages.Which
    ask: Callable[[Sequence[str]], dict[str, Answer]]
    cpu: str
    cores: int
    instruction_sets: Sequence[str]
    root: Path
    cache: Path
    places: Mapping[str, tuple[Path, float | None, bool]]


def this_world(workdir: Path) -> World:
    """The machine at hand; `workdir` is where runs would go. Nothing is loaded or started yet."""
    return World(
        environment=os.environ,
        python=sys.version_info[:3],
        executable=sys.executable,
        requirements=_requirements(),
        version=_version,
        which=shutil.which,
        ask=ask_libraries,
        cpu=str(describe_host()["cpu"]),
        cores=usable_cores(),
        instruction_sets=instruction_sets(),
        root=Path("/"),
        cache=cache_folder(),
        places={
            "runs": _place(workdir),
            "cache": _place(cache_folder()),
            "temporary files": _place(Path(tempfile.gettempdir())),
        },
    )


def examine(world: World) -> list[Finding]:
    """Every check, in the order people read them."""
    installed = {module: world.version(name) for module, name in DISTRIBUTIONS.items()}
    answers = world.ask([module for module, version in installed.items() if version])
    torch = answers.get("torch")
    findings = [
        packages.check_python(world.python, world.executable),
        packages.check_compiler(world.which, world.environment, needed=not installed["llama_cpp"]),
        *packages.check_extras(world.requirements, world.version),
        processor.check_processor(world.cpu, world.cores, world.instruction_sets, hiding_switches(world.environment)),
    ]
    if torch is not None:
        findings += [processor.check_library("torch", torch), processor.check_dtype(_chosen(world, torch))]
    if "onnxruntime" in answers:
        findings += [processor.check_library("onnxruntime", answers["onnxruntime"])]
        findings += [processor.check_int8(world.instruction_sets)]
    if "llama_cpp" in answers:
        findings += [processor.check_llama(str(installed["llama_cpp"]), answers["llama_cpp"])]
    return findings + _around(world, answers)


def _chosen(world: World, torch: Answer) -> ComputeType:
    """What training would compute in, as far as the processor or the first GPU tells."""
    gpus = [] if isinstance(torch, EdgeftError) else torch["gpus"]
    capability = tuple(gpus[0]["capability"]) if gpus else None
    return by_capability(world.instruction_sets, world.environment, capability)


def _around(world: World, answers: Mapping[str, Answer]) -> list[Finding]:
    said = {module: answer for module, answer in answers.items() if not isinstance(answer, EdgeftError)}
    return [
        surroundings.check_memory(world.root),
        surroundings.check_disk(world.places),
        surroundings.check_gpu(said.get("torch"), driver=(world.root / DRIVER).exists()),
        surroundings.check_huge_pages(world.root),
        surroundings.check_measured(world.cache),
        surroundings.check_network(
            world.environment,
            said["onnxruntime"]["telemetry"] if "onnxruntime" in said else None,
            {module: answer["sockets"] for module, answer in said.items()},
        ),
    ]


def _place(folder: Path) -> tuple[Path, float | None, bool]:
    """(folder, free bytes, whether it can be written) of `folder`, or of the nearest one above it that exists."""
    folder = folder.absolute()
    above = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    try:
        free: float | None = shutil.disk_usage(above).free
    except OSError:
        free = None
    return folder, free, above.is_dir() and os.access(above, os.W_OK)


def _requirements() -> list[str]:
    try:
        return metadata.requires("edgeft") or []
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return []


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
