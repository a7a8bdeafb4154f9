"""The recipe's section `distill`: a teacher, a student, and what the student learns of the teacher.

Names are those of TRL's `GKDConfig` (`beta`, `temperature`, `lmbda`, `seq_kd`, `max_new_tokens`), of torchtune
(`kd_ratio`), of model configs (`hidden_size` …) and of OpenAI's client (`base_url`, `max_tokens`, `top_logprobs`).
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from edgeft.sections.base import Section


class TeacherApi(Section):
    """A teacher behind an OpenAI-compatible endpoint; the prompts of the data are sent there."""

    base_url: str
    """Where it answers, with the version: `http://localhost:8000/v1`."""
    model: str
    """The name it goes by there."""
    api_key_env: str | None = None
    """The environment variable that holds the API key; null: none is sent."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Tokens a position whose log-probabilities are asked for and learned from; needs the same tokenizer. 0: the
    answers' text alone."""
    requests_per_minute: float | None = Field(None, gt=0.0)
    """Most requests in a minute; null: one after another as it answers."""
    input_price: float = Field(0.0, ge=0.0)
    """Price of a million tokens of prompt."""
    output_price: float = Field(0.0, ge=0.0)
    """Price of a million tokens of answer."""
    max_cost: float | None = Field(None, gt=0.0)
    """Most that all answers together may cost, in the currency of the prices; null: no limit."""
    max_retries: int = Field(5, ge=0)
    """Further tries after a failed request, ever further apart."""
    timeout: float = Field(120.0, gt=0.0)
    """Seconds a request may take."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.max_cost is not None and not (self.input_price or self.output_price):
            raise ValueError("max_cost needs input_price or output_price: without them nothing costs anything")
        return self


class Student(Section):
    """The model that learns: one of its own, or one cut from the teacher to these numbers of its config."""

    base: str | None = None
    """A local Hugging Face model folder with the tokenizer of `model.base`; null: cut from the teacher."""
    num_hidden_layers: int | None = Field(None, ge=1)
    """Layers; null: as the teacher."""
    hidden_size: int | None = Field(None, ge=1)
    """Width of the hidden states; null: as the teacher."""
    intermediate_size: int | None = Field(None, ge=1)
    """Neurons of a feed-forward block; null: as the teacher."""
    num_attention_heads: int | None = Field(None, ge=1)
    """Attention heads; null: as the teacher."""
    num_key_value_heads: int | None = Field(None, ge=1)
    """Key/value heads; null: as the teacher."""
    layer_strategy: Literal["even", "block_influence"] = "even"
    """Layers kept: evenly spaced, first and last among them, or those that change their input most (ShortGPT)."""

    def shape(self) -> dict[str, int]:
        """The numbers asked for, by their names in a config."""
        return self.model_dump(exclude={"base", "layer_strategy"}, exclude_none=True)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.base) == bool(self.shape()):
            raise ValueError("give `base`, a model folder, or what to cut from the teacher (num_hidden_layers, …)")
        return self


class Distill(Section):
    """The student learns the teacher's next-token distributions; what is not here is as in `train`."""

    teacher: str | None = None
    """A local Hugging Face model folder; null: the model that training made."""
    teacher_api: TeacherApi | None = None
    """A teacher over an API in its place."""
    student: Student | None = None
    """The model that learns; null: the model that training made, from another teacher."""
    beta: float = Field(0.0, ge=0.0, le=1.0)
    """0: forward KL; 1: reverse KL; between: the generalized Jensen-Shannon divergence."""
    temperature: float = Field(1.0, gt=0.0)
    """Both distributions are taken at this temperature; 1 leaves them."""
    skew_alpha: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the other distribution mixed in (DistiLLM's skewed KL); for beta 0 and 1."""
    kd_ratio: float = Field(0.5, ge=0.0, le=1.0)
    """Weight of the divergence; the rest is that of the cross-entropy with the labels."""
    hidden_weight: float = Field(0.0, ge=0.0)
    """Weight of the squared difference of the last hidden states."""
    lmbda: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the batches that the student answers itself, sampled, for the teacher to judge (GKD)."""
    seq_kd: bool = False
    """Learn from answers the teacher generates in place of the data's; all that a teacher with another tokenizer
    can give."""
    max_new_tokens: int = Field(128, ge=1)
    """Longest answer that is generated, in tokens."""
    top_k: int | Literal["auto"] | None = "auto"
    """Tokens that are cached of the teacher's distribution at each position; `auto`: of each position as few as
    `cache_kl` allows, within 300 bytes in the mean; null: none, the teacher is computed in every step."""
    cache_kl: float = Field(0.001, gt=0.0)
    """Largest mean KL divergence in nats a token between the teacher's distributions and what is cached of them."""
    learning_rate: float = Field(1e-3, gt=0.0)
    """Peak learning rate."""
    num_train_epochs: float = Field(3, gt=0.0)
    """Passes over the training examples."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in one optimizer step."""

    @property
    def live(self) -> bool:
        """Whether the teacher is computed in every step."""
        return self.hidden_weight > 0.0 or self.lmbda > 0.0 or self.top_k is None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.teacher and self.teacher_api:
            problems.append("give teacher or teacher_api, not both")
        if not (self.teacher or self.teacher_api or self.student):
            problems.append("give `student`, a smaller model to teach, or `teacher`, a larger one to learn from")
        if self.skew_alpha and self.beta not in (0.0, 1.0):
            problems.append("skew_alpha skews the KL of beta 0 or 1; between them both sides are mixed already")
        if isinstance(self.top_k, int) and self.top_k < 1:
            problems.append(f"top_k must be at least 1, `auto` or null, not {self.top_k}")
        if self.teacher_api is not None:
            problems += self._problems_of_api(self.teacher_api)
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _problems_of_api(self, api: TeacherApi) -> list[str]:
        problems = []
        if self.hidden_weight or self.lmbda:
            problems.append("teacher_api gives answers; hidden_weight and lmbda need a teacher that runs here")
        if self.student is not None and not self.student.base:
            problems.append("a student cannot be cut from a teacher over an API; give student.base")
        if api.top_logprobs and self.temperature != 1.0:
            problems.append("top_logprobs are of temperature 1; set temperature: 1")
        return problems
