"""The recipe's sections `parity` and `bench`: what exported files are held to."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from edgeft.sections.base import Section

TaskMetric = Literal[
    "exact_match", "json_valid", "json_match", "json_field_f1", "label_accuracy", "macro_f1", "rouge_l",
    "numeric_answer", "tool_call_match",
]  # fmt: skip


BenchMetric = Literal[TaskMetric, "json_schema_valid", "perplexity", "ece", "out_of_scope_recall"]


class Limits(Section):
    """How far a form of the model may be from the one before it."""

    top1: float = Field(ge=0.0, le=1.0)
    """Smallest share of positions with the same most likely token."""
    kl_mean: float = Field(ge=0.0)
    """Largest mean KL divergence from the reference, in nats per token."""


class Tolerance(Section):
    """Limits by kind of file."""

    f16: Limits = Limits(top1=0.98, kl_mean=5e-4)
    """F32, F16 and BF16 files."""
    q8_0: Limits = Limits(top1=0.95, kl_mean=5e-3)
    """Q8_0 files."""
    q4: Limits = Limits(top1=0.85, kl_mean=0.1)
    """Every smaller quantization."""


class Parity(Section):
    """The same prompts through every form of the model."""

    prompts: int = Field(32, ge=1)
    """Examples of the test set that are compared."""
    n_gen: int = Field(32, ge=1)
    """Tokens generated greedily to measure the common prefix."""
    tolerance: Tolerance = Tolerance()
    """When a form counts as moved."""


class Latency(Section):
    """How speed is measured."""

    prompts: int = Field(8, ge=1)
    """Prompts of the test set."""
    n_gen: int = Field(64, ge=2)
    """Tokens generated after each prompt."""
    repetitions: int = Field(5, ge=1)
    """Times each prompt is measured."""
    warmup: int = Field(1, ge=0)
    """Runs before the clock starts."""


class Bench(Section):
    """Accuracy and speed of the file that ships, in its real runtime."""

    files: Literal["all", "shipped"] = "all"
    """Files measured: every exported one, so that the report can set them side by side, or the one that ships, which
    is the one budgets are about."""
    metrics: list[BenchMetric] = Field(default=["exact_match"], min_length=1)
    """What is scored on the test set."""
    json_schema: dict[str, Any] | None = None
    """The JSON schema that `json_schema_valid` checks answers against."""
    out_of_scope: str | None = None
    """The answer that abstains, as text or JSON; the test examples that want it are out of scope."""
    abstain_below: float = Field(0.0, ge=0.0, le=1.0)
    """Answers less probable than this count as abstention; 0: only `out_of_scope` does."""
    slice_by: list[str] = []
    """Fields of the examples by whose values the scores are listed apart; `answer` is the reference."""
    slice_minimum: int = Field(10, ge=1)
    """Examples a slice needs to count as the best or the worst."""
    limit: int | None = Field(None, ge=1)
    """Examples of the test set; null: all."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer, in tokens."""
    n_ctx: int = Field(1024, ge=8)
    """Context window of the runtime, in tokens."""
    n_threads: int | None = Field(None, ge=1)
    """CPU threads of the runtime; null: its own choice."""
    minutes: float | None = Field(None, gt=0.0)
    """Longest time for each measured file, in minutes: fewer timed runs, and examples in a random order until it is
    over; null: all of both, so that the verdict does not depend on how fast the machine is."""
    latency: Latency = Latency()
    """How speed is measured."""
    baselines: bool = True
    """Whether the torch model, the base model and TF-IDF answer the test set as well; drops and gains need it."""
    few_shot: int = Field(3, ge=0)
    """Training examples shown to the base model in the few-shot baseline; 0 leaves it out."""
    baseline_limit: int = Field(100, ge=1)
    """Examples of the test set for the base model's baselines."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for metric, key in (("json_schema_valid", "json_schema"), ("out_of_scope_recall", "out_of_scope")):
            if metric in self.metrics and getattr(self, key) is None:
                raise ValueError(f"{metric} needs the key {key}")
        return self
