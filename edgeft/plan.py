"""What a recipe asks for: the stages, what each reads, and the key that says whether it is up to date.

A key is the sha256 of everything that can change a stage's result: the keys of the artifacts it reads, the
recipe values it reads, the contents of its input files, the versions of the packages that matter, the seed
and the version of the stage itself. Paths are not in it: data that moves is still the same data.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from edgeft.errors import DataError, EdgeftError, UsageError
from edgeft.recipe import VARIABLE, Recipe
from edgeft.store import HashCache


@dataclass(frozen=True)
class Step:
    """A stage as the pipeline sees it.

    `reads` names the stages whose artifacts it gets; `sections` the recipe keys it may read, whole or `a.b`;
    `files` the groups of input files (`_input_files`); `extra` the pip extra it needs; `packages` the
    distributions whose version can change the result. Raise `version` when the stage's own results change.
    `resumable`: its half-done work is kept for the next run. `stops`: a failed check here ends the run.
    `distributed`: several workers can make it together. `module`: of `edgeft.stages`, where it is not the stage's name.
    """

    stage: str
    reads: tuple[str, ...]
    sections: tuple[str, ...]
    files: tuple[str, ...] = ()
    extra: str = "train"
    packages: tuple[str, ...] = ()
    version: int = 1
    resumable: bool = False
    stops: bool = True
    distributed: bool = False
    module: str | None = None


# Recipe values that only say where a file is: its content counts instead, for the stages that read it.
PATHS = (
    "model.base",
    "distill.teacher",
    "distill.student.base",
    *(f"{section}.prepare.{name}" for section in ("data", "pretrain") for name in ("script", "inputs")),
)
TORCH = ("torch", "transformers")
DATA = Step(
    "data", (), ("model", "data", "train.objective", "train.stages", "seed"), ("base", "data"),
    packages=("transformers", "tokenizers"), version=3,
)  # fmt: skip
TRAIN = Step(
    "train", ("data",), ("model", "train", "seed"), ("base",),
    packages=(*TORCH, "peft", "bitsandbytes"), version=3, resumable=True, distributed=True,
)  # fmt: skip
MERGE = Step(
    "merge", ("data", "train"), ("model", "data", "train", "merge", "seed"), ("base",),
    packages=(*TORCH, "peft", "bitsandbytes"), version=3,
)  # fmt: skip
SPINE = (
    DATA,
    TRAIN,
    MERGE,
    Step(
        "export",
        ("data", "merge"),
        ("name", "export", "seed"),
        extra="train,gguf",
        packages=("gguf", "llama-cpp-python", "onnx"),
        version=3,
    ),
    Step(
        "parity",
        ("data", "train", "merge", "export"),
        ("model", "train", "export", "parity", "bench", "seed"),
        ("base",),
        extra="train,gguf",
        packages=(*TORCH, "peft", "llama-cpp-python", "onnxruntime"),
    ),
    Step(
        "baseline",
        ("data", "merge"),
        ("model", "bench", "seed"),
        ("base",),
        packages=(*TORCH, "scikit-learn"),
        version=2,
    ),
    Step(
        "bench",
        ("data", "export"),
        ("export", "bench", "seed"),
        (),
        "gguf",
        ("llama-cpp-python", "onnxruntime"),
        version=3,
    ),
    Step("gate", ("parity", "baseline", "bench"), ("gate",), ("gate",), extra="gguf", version=2, stops=False),
    Step(
        "report",
        ("data", "train", "merge", "export", "parity", "baseline", "bench", "gate"),
        ("name", "seed", "model", "train", "export"),
        extra="gguf",
        version=4,
    ),
)
RECOVER = Step(
    "recover", ("data",), ("export", "recover", "seed"), extra="train,gguf",
    packages=(*TORCH, "gguf", "llama-cpp-python"), resumable=True,
)  # fmt: skip
# Stages a recipe may put behind `merge`, in this order: each makes a model folder of the one before.
AFTER_MERGE: tuple[Step, ...] = (
    Step(
        "distill", ("data",), ("model", "data.max_length", "train", "merge", "distill", "seed"), ("base", "distill"),
        packages=TORCH, resumable=True,
    ),
    RECOVER,
)  # fmt: skip
CLASSIFIER = (
    DATA,
    TRAIN,
    MERGE,
    Step(
        "export", ("data", "merge"), ("export", "bench.abstain_below", "bench.n_threads", "seed"), extra="train,onnx",
        packages=("onnx", "onnxruntime", "tokenizers"), module="encoder_export", version=2,
    ),
    Step(
        "parity", ("data", "merge", "export"), ("export", "parity", "bench.n_threads", "seed"), extra="train,onnx",
        packages=(*TORCH, "onnxruntime", "tokenizers"), module="encoder_parity",
    ),
    Step(
        "baseline", ("data", "merge"), ("bench", "seed"), packages=(*TORCH, "scikit-learn"), module="encoder_baseline",
    ),
    Step(
        "bench", ("data", "export"), ("export", "bench", "seed"), extra="onnx",
        packages=("onnxruntime", "tokenizers"), module="encoder_bench",
    ),
    *(step for step in SPINE if step.stage in ("gate", "report")),
)  # fmt: skip
PRETRAIN = (Step("pretrain", (), ("pretrain", "seed"), ("pretrain",), packages=(*TORCH, "tokenizers"), resumable=True),)
TRAINS = {"train": "train", "distill": "train", "recover": "recover", "pretrain": "pretrain"}
"""Stages that train -> the section whose `torch_dtype` they train in."""
STAGES = tuple(step.stage for step in (*SPINE, *AFTER_MERGE, *PRETRAIN))


@dataclass(frozen=True)
class Planned:
    """A step of one recipe with its key, and `made_from`: what the key is the hash of, by name."""

    step: Step
    key: str
    made_from: dict[str, Any]

    @property
    def stage(self) -> str:
        """The stage's name."""
        return self.step.stage

    @property
    def torch_dtype(self) -> str | None:
        """The type it trains in; None for a stage that trains nothing."""
        section = TRAINS.get(self.stage)
        return self.made_from.get(f"recipe {section}.torch_dtype") if section else None


def plan(recipe: Recipe, hashes: HashCache, until: str | None = None) -> list[Planned]:
    """The steps of the recipe in order, up to and including `until`, with their keys.

    The recipe is a settled one (`edgeft.torch_dtype`): a key stands for what is done, not for what this machine would
    choose. Raises DataError or ModelError when an input file is missing, UsageError for an unknown stage.
    """
    steps = steps_of(recipe)
    if until is not None:
        if until not in [step.stage for step in steps]:
            known = ", ".join(step.stage for step in steps)
            raise UsageError(f"recipe {recipe.name} has no stage {until}; its stages: {known}")
        steps = _needed(steps, until)
    _check_files(recipe, steps)
    values = _flat(recipe.model_dump(mode="json"))
    unsettled = [name for name, value in values.items() if name.endswith(".torch_dtype") and value == "auto"]
    if unsettled:
        raise ValueError(f"{', '.join(unsettled)}: auto has not been decided yet")
    planned: dict[str, Planned] = {}
    hashed: dict[Path, str] = {}
    for step in steps:
        made_from = _made_from(recipe, step, values, planned, hashes, hashed)
        canonical = json.dumps([step.stage, made_from], sort_keys=True, separators=(",", ":"))
        key = hashlib.sha256(canonical.encode()).hexdigest()
        planned[step.stage] = Planned(step, key, made_from)
    return list(planned.values())


def steps_of(recipe: Recipe) -> tuple[Step, ...]:
    """Every step of this kind of recipe, in order."""
    if recipe.pretrain is not None:
        return PRETRAIN
    if recipe.classifies:
        return CLASSIFIER
    asked = [step for step in AFTER_MERGE if getattr(recipe, step.stage) is not None]
    return _with(SPINE, asked)


def _with(spine: tuple[Step, ...], asked: list[Step]) -> tuple[Step, ...]:
    """The spine with the steps in `asked` behind `merge`; each reads the model of the one before it, and what
    follows reads the model of the last. What `recover` makes is for one file and read by `export` alone, beside the
    model it was made of: every other file, and every judgement, is about that."""
    if not asked:
        return spine
    at = [step.stage for step in spine].index("merge") + 1
    models = ["merge", *(step.stage for step in asked)]
    chain = [replace(step, reads=(*step.reads, model)) for step, model in zip(asked, models, strict=False)]
    recovers = models[-1] == RECOVER.stage
    after = [replace(step, reads=_instead(step.reads, models[-2 if recovers else -1])) for step in spine[at:]]
    if recovers:
        after = [replace(s, reads=(*s.reads, RECOVER.stage)) if s.stage == "export" else s for s in after]
    return (*spine[:at], *chain, *after)


def _instead(reads: tuple[str, ...], model: str) -> tuple[str, ...]:
    return tuple(model if stage == "merge" else stage for stage in reads)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """In words, what differs between two `made_from`."""
    words = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after and name in old and name in new:
            continue
        kind, _, what = name.partition(" ")
        if kind == "stage":
            words.append(f"{what} is made again")
        elif kind == "file":
            words.append(f"{what} changed")
        else:
            words.append(f"{what}: {_short(before)} → {_short(after)}")
    return words


def _needed(steps: tuple[Step, ...], until: str) -> tuple[Step, ...]:
    """The steps `until` depends on, itself included."""
    needed = {until}
    for step in reversed(steps):
        if step.stage in needed:
            needed |= set(step.reads)
    return tuple(step for step in steps if step.stage in needed)


def _made_from(
    recipe: Recipe,
    step: Step,
    values: dict[str, Any],
    planned: dict[str, Planned],
    hashes: HashCache,
    hashed: dict[Path, str],
) -> dict[str, Any]:
    files = {name: path for group in step.files for name, path in _input_files(recipe, group).items()}
    made_from: dict[str, Any] = {"version stage": step.version}
    for stage in step.reads:
        made_from[f"stage {stage}"] = planned[stage].key
    for name, value in values.items():
        if _reads(step, name) and name not in files and name not in PATHS:
            made_from[f"recipe {name}"] = value
    for name, path in files.items():
        if path not in hashed:
            hashed[path] = _hash_input(name, path, hashes)
        made_from[f"file {name}"] = hashed[path]
    for package in step.packages:
        made_from[f"package {package}"] = _version(package)
    return made_from


def _reads(step: Step, name: str) -> bool:
    """Whether the step may read the recipe value `name`: it, or a section it stands in, is among its sections."""
    return any(f"{name}.".startswith(f"{section}.") for section in step.sections)


def _input_files(recipe: Recipe, group: str) -> dict[str, Path]:
    """The files of a group, by the recipe key that names them."""
    if group == "base":
        files = {"model.base": recipe.base_folder()}
        if recipe.model.chat_template not in (None, "chatml", "plain"):
            files["model.chat_template"] = recipe.resolve(str(recipe.model.chat_template))
        return files
    if group == "gate":
        return {"gate.baseline": recipe.baseline_file} if recipe.baseline_file else {}
    if group == "distill":
        return {name: recipe.resolve(path) for name, path in recipe.distilled_from().items()}
    prepare = recipe.pretrain.prepare if recipe.pretrain else recipe.data.prepare
    if prepare is None:
        return {f"data.{name}": recipe.resolve(path) for name, path in recipe.data.files().items()}
    files = {f"{group}.prepare.script": recipe.resolve(prepare.script)}
    for index, path in enumerate(prepare.inputs):
        files[f"{group}.prepare.inputs.{index}"] = recipe.resolve(path)
    return files


def _check_files(recipe: Recipe, steps: tuple[Step, ...]) -> None:
    """Raise what is wrong with the inputs of all steps: DataError that lists every file that is missing, or the one
    error of a base that is none."""
    problems: list[str] = []
    errors: list[EdgeftError] = []
    for group in dict.fromkeys(group for step in steps for group in step.files):
        try:
            files = _input_files(recipe, group)
        except EdgeftError as error:
            errors.append(error)
            problems.append(str(error))
            continue
        for name, path in files.items():
            if not path.exists():
                problems.append(f"{recipe.where(name)}{name}: no such file: {path}{_variable(recipe, name)}")
    if errors and len(problems) == 1:
        raise errors[0]
    if problems:
        raise DataError("\n".join(problems))


def _variable(recipe: Recipe, key: str) -> str:
    """The environment variable that says where the file is, if one does."""
    value: Any = recipe.model_dump(mode="json")
    for part in key.split("."):
        inside = value.get(part) if isinstance(value, dict) else None
        value = value[int(part)] if isinstance(value, list) else inside
    found = VARIABLE.search(value) if isinstance(value, str) else None
    return f"; the environment variable {found[1]} says where it is: export {found[1]}=FOLDER" if found else ""


def _hash_input(name: str, path: Path, hashes: HashCache) -> str:
    try:
        return hashes.tree(path)
    except FileNotFoundError:
        raise DataError(f"{name}: no such file: {path}") from None
    except OSError as error:
        raise DataError(f"{name}: cannot read {path} ({error.strerror})") from None


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"train.lora.r": 16, ...}; lists stay whole."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.")
    return flat


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
