"""The recipe's sections `train` and `merge`."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from edgeft.sections.base import Section, TorchDtype
from edgeft.sections.bench import TaskMetric


class Lora(Section):
    """Low-rank adapters (peft `LoraConfig`)."""

    r: int = Field(16, ge=1)
    """Rank."""
    lora_alpha: int = Field(32, ge=1)
    """Scale: the update is multiplied by lora_alpha / r (by lora_alpha / sqrt(r) with rslora)."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs set to zero in training."""
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    """`all-linear` (every linear layer but the head), or names of modules."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""
    use_dora: bool = False
    """Learn the length of each weight row apart from its direction (DoRA)."""
    init_lora_weights: Literal["default", "pissa", "loftq"] = "default"
    """`default`: the adapter starts as zero; `pissa`: as the base's principal components; `loftq`: as what NF4
    loses (needs `method: qlora`)."""
    modules_to_save: list[str] = []
    """Modules trained whole beside the adapters, such as `embed_tokens` or `lm_head`."""


Objective = Literal["sft", "text", "dpo", "orpo", "classification"]


class TrainStage(Section):
    """One of several trainings in a row, each from where the one before stopped; null: as in `train`."""

    objective: Objective = "sft"
    """What is learned: `sft` the assistant's turns of `data.train`, `text` every token of `data.text`, `dpo` or
    `orpo` the preferences of `data.preference`, `classification` the answer as a label (encoders)."""
    learning_rate: float | None = Field(None, gt=0.0)
    """Peak learning rate."""
    num_train_epochs: float | None = Field(None, gt=0.0)
    """Passes over the stage's examples."""
    batch_tokens: int | None = Field(None, ge=1)
    """Tokens in one optimizer step."""
    beta: float | None = Field(None, gt=0.0)
    """Strength of the preference loss."""


@dataclass(frozen=True)
class Phase:
    """A TrainStage in which nothing is left to be inherited."""

    objective: Objective
    learning_rate: float
    num_train_epochs: float
    batch_tokens: int
    beta: float


class Train(Section):
    """Fine-tuning (names of transformers `TrainingArguments` and of TRL's configs where one exists)."""

    objective: Objective = "sft"
    """What is learned: `sft` the assistant's turns of `data.train`, `text` every token of `data.text`, `dpo` or
    `orpo` the preferences of `data.preference`, `classification` the answer as a label (encoders)."""
    stages: list[TrainStage] = []
    """Several trainings in a row, for example text, then sft, then dpo; empty: one, of `objective`."""
    beta: float = Field(0.1, gt=0.0)
    """Strength of the preference loss (TRL `DPOConfig.beta`; for `orpo` the weight of the odds ratio)."""
    hyperparameters: Literal["as_given", "auto"] = "as_given"
    """`auto`: `num_train_epochs`, `batch_tokens` and `learning_rate`, where the recipe does not give them, follow
    from the number of examples and tokens; the choice is shown."""

    method: Literal["lora", "qlora", "full"] = "lora"
    """`lora`, `qlora` (base held in 4 bits) or `full` (every weight)."""
    lora: Lora = Lora()
    """The adapter; read by `lora` and `qlora`."""
    learning_rate: float = Field(2e-4, gt=0.0)
    """Peak learning rate."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: float = Field(0.03, ge=0.0)
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled decay."""
    max_grad_norm: float = Field(1.0, ge=0.0)
    """Gradients are scaled down to this norm; 0 leaves them."""
    num_train_epochs: float = Field(3, gt=0.0)
    """Passes over the training examples."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in one optimizer step."""
    micro_batch_tokens: int = Field(4096, ge=1)
    """Tokens of one forward and backward pass, which memory grows with; gradients add up to the whole batch."""
    torch_dtype: TorchDtype = "auto"
    """Type the weights are held and multiplied in; `auto`: bfloat16 where this machine multiplies it faster than
    float32, else float32."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints, beside those that every minute and every epoch get; null: only these."""
    eval_steps: int | None = Field(None, ge=1)
    """Optimizer steps between evaluations on the validation set; null: at the end of each epoch."""
    eval_examples: int = Field(0, ge=0)
    """Validation examples answered at every evaluation and scored; 0: only the loss is measured."""
    eval_metrics: list[TaskMetric] = Field(default=["exact_match"], min_length=1)
    """What these answers are scored by."""
    metric_for_best_model: Literal["eval_loss"] | TaskMetric | None = None
    """The state with the best value of this is kept in the end; null: the last state."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Evaluations without a better `metric_for_best_model` after which training stops; null: never."""
    report_to: list[Literal["tensorboard", "mlflow"]] = []
    """Also log there; log.jsonl is always written. Their packages are yours to install."""
    gradient_checkpointing: Literal["auto", "always", "never"] = "auto"
    """Recompute activations in the backward pass instead of keeping them; `auto`: where `memory_budget` asks it."""
    memory_budget: str | None = None
    """Memory the training may take, like `4GB`; null: 80 % of what is free."""
    fused_lora: bool = True
    """Adapters computed without keeping their inputs twice; the same numbers, less memory and time."""
    optim: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw` (fused where torch has it) or `adamw_8bit` (bitsandbytes, on a GPU)."""
    torch_compile: bool = False
    """Compile the layers with torch.compile; pays on GPUs and long runs."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; null: torch's default."""
    resume_from_checkpoint: bool = True
    """Go on from the last checkpoint of an interrupted run."""
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0)
    """AdamW's decay of the first moment."""
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0)
    """AdamW's decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0.0)
    """AdamW's epsilon."""

    def phases(self) -> list[Phase]:
        """The trainings to do, in order, with every value filled in."""
        names = ("learning_rate", "num_train_epochs", "batch_tokens", "beta")
        own = {name: getattr(self, name) for name in names}
        return [
            Phase(stage.objective, **(own | stage.model_dump(include=set(names), exclude_none=True)))
            for stage in self.stages or [TrainStage(objective=self.objective)]
        ]


class Merge(Section):
    """The adapter folded into the base."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the merged weights on disk."""
    merge_base: Literal["16bit", "4bit", "auto"] = "16bit"
    """What an adapter trained on an NF4 base is folded into: the base as it was, the base as NF4 held it, or
    whichever has the lower validation loss."""
