"""The recipe: everything a run is made of.

`recipe_reader.read_recipe` makes a Recipe from a YAML file and knows the line numbers. Paths in a recipe are
relative to its file, and `${VAR}` or `${VAR:-default}` in them is expanded.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from edgeft.bench.budgets import BENCH_METRICS, TASK_METRICS, parse_budget, score_of
from edgeft.errors import ModelError, RecipeError, UsageError
from edgeft.sections import NANO, Bench, Data, Export, Merge, Model, Parity, Pretrain, Section, Train
from edgeft.sections.distill import Distill
from edgeft.sections.recover import Recover

BASELINE = "baseline"
NANO_FOLDER = Path(__file__).parent / "assets" / "nano"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def section_problems(given: set[str]) -> list[str]:
    """What is wrong with a recipe that has these sections."""
    if "pretrain" in given:
        return ["`train` and `pretrain` cannot both be in one recipe"] if "train" in given else []
    if "train" not in given:
        return ["the section `train` (or `pretrain`) is missing"]
    return [] if "data" in given else ["the section `data` is missing: the examples to train on"]


def training_problems(train: Train, data: Data) -> list[str]:
    """What in the training section does not go with the rest."""
    problems = []
    objectives = [phase.objective for phase in train.phases()]
    needed = {"text": "text", "dpo": "preference", "orpo": "preference"}
    for objective in dict.fromkeys(objectives):
        key = needed.get(objective)
        if key and getattr(data, key) is None:
            problems.append(f"train: the objective {objective} needs data.{key}, the file to learn from")
    if "classification" in objectives and len(objectives) > 1:
        problems.append("train.stages: classification stands alone; the other objectives train a language model")
    if train.lora.init_lora_weights == "loftq" and train.method != "qlora":
        problems.append("train.lora.init_lora_weights: loftq needs train.method qlora, whose loss it makes up for")
    if train.early_stopping_patience is not None and train.metric_for_best_model is None:
        problems.append("train.early_stopping_patience: needs train.metric_for_best_model, what is to become better")
    best = train.metric_for_best_model
    if "classification" in objectives:
        return problems
    if best not in (None, "eval_loss", *train.eval_metrics):
        problems.append(f"train.metric_for_best_model: {best} is not among train.eval_metrics")
    if best not in (None, "eval_loss") and not train.eval_examples:
        problems.append(
            f"train.metric_for_best_model: {best} needs train.eval_examples, the number of "
            "validation examples answered to measure it"
        )
    return problems


def recovery_problems(recover: Recover, train: Train, export: Export) -> list[str]:
    """What in the recovery section does not go with the rest."""
    if "classification" in (phase.objective for phase in train.phases()):
        return ["recover: a classifier has no next token to compare; take the section out"]
    files: dict[str, Any] = {entry.ftype: entry for entry in export.gguf} | {entry.name: entry for entry in export.onnx}
    target = recover.target or export.shipped
    if target not in files:
        return [f"recover.target: {target} is not among the files of export ({', '.join(files)})"]
    entry = files[target]
    if target in ("F32", "F16", "BF16", "fp32", "fp16", "mix"):
        return [f"recover.target: {target} has no grid to train for; name a quantized file of export"]
    if getattr(entry, "rounding", "nearest") == "feedback" or getattr(entry, "method", "rtn") in ("gptq", "feedback"):
        return [f"recover: the file {target} is rounded with error feedback, off the grid trained for; take that out"]
    return []


def budget_problems(gate: dict[str, str], bench: Bench) -> list[str]:
    """Budgets on scores that the recipe does not measure: they could only fail."""
    problems = []
    scores = (*TASK_METRICS, *BENCH_METRICS)
    for metric in gate:
        score = score_of(metric)
        if score in scores and score not in bench.metrics:
            problems.append(
                f"gate.{metric}: {score} is not measured, so the budget could only fail; add it to bench.metrics "
                f"({', '.join(bench.metrics)})"
            )
    return problems


def _absent() -> Any:
    """None under a type that is not optional: `Recipe._complete` lets only pre-training recipes keep it."""
    return None


class Recipe(Section):
    """A whole run, from data files to a verdict."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    """Name of the run and of the files it makes: lower-case letters, digits, `.`, `_` and `-`."""
    seed: int = Field(42, ge=0, lt=2**32)
    """Seed of everything random."""
    model: Model = Model()
    """The model to start from."""
    data: Data = Field(default_factory=_absent)
    """The examples; every recipe but a pre-training one has them."""
    train: Train = Field(default_factory=_absent)
    """Fine-tuning; a recipe has either this or `pretrain`."""
    pretrain: Pretrain | None = None
    """Training a base model from nothing."""
    merge: Merge = Merge()
    """The adapter folded into the base."""
    distill: Distill | None = None
    """A smaller model that learns from the one training made, or that one from a larger."""
    recover: Recover | None = None
    """Training against the grid of an exported file, so that rounding costs less."""
    export: Export = Export()
    """The files to make."""
    parity: Parity = Parity()
    """The same prompts through every form of the model."""
    bench: Bench = Bench()
    """Accuracy and speed of the file that ships."""
    gate: dict[str, str] = Field({})
    """Budgets: a metric and `<op> number[unit]`, e.g. `exact_match: ">= 0.90"`, `size_bytes: "<= 8MB"`. The key
    `baseline` names a JSON file of `edgeft bench --save-baseline`, for budgets like `">= 0.95x baseline"`."""

    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _lines: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _free_name(cls, name: str) -> str:
        if name == "store":
            raise ValueError("`store` is the folder all runs share; choose another name")
        return name

    @field_validator("gate")
    @classmethod
    def _budgets(cls, gate: dict[str, str]) -> dict[str, str]:
        problems = []
        for metric, text in gate.items():
            if metric == BASELINE:
                continue
            try:
                budget = parse_budget(metric, text)
            except UsageError as error:
                problems.append(str(error))
            else:
                if budget.factor and BASELINE not in gate:
                    problems.append(f"gate.{metric}: {text!r} needs a baseline; name its file under gate.{BASELINE}")
        if problems:
            raise ValueError("\n".join(problems))
        return gate

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {name for name in ("data", "train", "pretrain") if getattr(self, name) is not None}
        for problem in section_problems(given):
            raise ValueError(problem)
        if self.train is not None:
            problems = training_problems(self.train, self.data)
            problems += budget_problems(self.gate, self.bench)
            if self.recover is not None:
                problems += recovery_problems(self.recover, self.train, self.export)
            if problems:
                raise ValueError("\n".join(problems))
        if self.data is not None and self.data.unlabelled is not None and self.distill is None:
            raise ValueError(
                "data.unlabelled: only the teacher of `distill` answers it; add the section or take it out"
            )
        if self.distill is not None and (self.train is None or self.train.phases()[0].objective == "classification"):
            raise ValueError("distill: only a language model that `train` makes can be distilled; take the section out")
        return self

    @property
    def classifies(self) -> bool:
        """Whether the recipe trains a classifier, not a language model."""
        return self.train is not None and self.train.phases()[0].objective == "classification"

    @property
    def shipped(self) -> str:
        """The name of the file that ships, as files.json has it."""
        return self.export.encoder[-1].name if self.classifies else self.export.shipped

    @property
    def budgets(self) -> dict[str, str]:
        """The budgets of `gate`, by metric."""
        return {metric: text for metric, text in self.gate.items() if metric != BASELINE}

    @property
    def baseline_file(self) -> Path | None:
        """The stored baseline that budgets are held against. Raises RecipeError on an unset variable."""
        return self.resolve(self.gate[BASELINE]) if BASELINE in self.gate else None

    @property
    def folder(self) -> Path:
        """The folder of the recipe file; relative paths start here."""
        return self._folder

    def where(self, key: str) -> str:
        """`recipe.yaml:7: ` for a dotted key of the recipe's file, or the section it stands in; empty if unknown."""
        parts = key.split(".")
        places = (self._lines.get(".".join(parts[:n])) for n in range(len(parts), 0, -1))
        return next((f"{place}: " for place in places if place), "")

    def resolve(self, path: str) -> Path:
        """`path` as the recipe means it: variables expanded, absolute. Raises RecipeError on an unset one."""
        return (self._folder / expand_variables(path)).absolute()

    def base_folder(self) -> Path:
        """The folder of the base model. Raises ModelError when there is none."""
        if self.model.base == NANO:
            return NANO_FOLDER
        folder = self.resolve(self.model.base)
        if not folder.is_dir():
            raise ModelError(f"{self.where('model.base')}model.base: {folder} is not a folder; {self._base_advice()}")
        return folder

    def _base_advice(self) -> str:
        """What to do about a base that is no folder, by what it looks like."""
        base = self.model.base
        if variable := VARIABLE.search(base):
            return f"it is named by the environment variable {variable[1]}: export {variable[1]}=FOLDER"
        if base.endswith(".gguf"):
            return f"a GGUF file is turned into one by: edgeft import {base} -o base; then model.base: base"
        if HUB_ID.fullmatch(base) and not (self._folder / base).parent.is_dir():
            return f"a model of the Hub is fetched by: hf download {base} --local-dir base; then model.base: base"
        return f"give {NANO} or a Hugging Face model folder"

    @property
    def base_name(self) -> str:
        """The base without the folders on the way, which are this machine's own: for what leaves it."""
        return NANO if self.model.base == NANO else self.resolve(self.model.base).name

    def distilled_from(self) -> dict[str, str]:
        """The model folders `distill` names, by key."""
        section = self.distill
        if section is None:
            return {}
        named = {"distill.teacher": section.teacher, "distill.student.base": section.student and section.student.base}
        return {key: path for key, path in named.items() if path}

    @classmethod
    def build(cls, content: dict[str, Any], folder: Path) -> "Recipe":
        """A recipe from plain data, with relative paths starting at `folder`. Raises pydantic's error."""
        recipe = cls.model_validate(content)
        recipe._folder = folder.absolute()
        return recipe


def expand_variables(text: str) -> str:
    """Replace `${VAR}` and `${VAR:-default}` by the environment. Raises RecipeError on an unset variable."""

    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        if os.environ.get(name):
            return os.environ[name]
        if default is None:
            raise RecipeError(f"{text}: the environment variable {name} is not set; export {name}=...")
        return default

    return VARIABLE.sub(value, text)
