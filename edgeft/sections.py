"""The sections of a recipe: their keys, types and defaults, and nothing else.

Names are the upstream ones (peft `LoraConfig`, transformers `TrainingArguments`, llama.cpp `ftype`/`n_ctx`)
wherever one exists. The docstring under a key says what it means and in which unit.
"""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

NANO = "edgeft/nano"

Ftype = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K",
    "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S", "TQ2_0", "TQ1_0",
]  # fmt: skip
TaskMetric = Literal[
    "exact_match", "json_valid", "json_match", "json_field_f1", "label_accuracy", "macro_f1", "rouge_l",
    "numeric_answer", "tool_call_match",
]  # fmt: skip
BenchMetric = Literal[TaskMetric, "json_schema_valid", "perplexity", "ece", "out_of_scope_recall"]


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, types are not guessed, values do not change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Model(Section):
    """The model to start from."""

    base: str = NANO
    """`edgeft/nano` (embedded in the package) or a local Hugging Face model folder."""
    chat_template: str | None = None
    """null: the tokenizer's own; `chatml`; `plain`; or the path of a Jinja file."""

    @property
    def base_name(self) -> str:
        """The base without the folders on the way, which are this machine's own: for what leaves it."""
        return self.base if self.base == NANO else PurePath(self.base).name


class Prepare(Section):
    """A script that makes the data files."""

    script: str
    """A Python file, run as `python script.py --out FOLDER`; the three files are then in FOLDER."""
    inputs: list[str] = []
    """Files or folders the script reads: when one changes, the data is made again."""


class Source(Section):
    """A file of examples in any format `edgeft data import` reads."""

    path: str
    """The file."""
    format: str | None = None
    """Its format; null: seen from the data."""
    columns: dict[str, str] = {}
    """Column map, e.g. `{prompt: question, completion: answer}`."""


class Weighted(Source):
    """A file of examples and how much of it is used."""

    weight: float = Field(1.0, gt=0.0, le=100.0)
    """How often each example is seen in an epoch: 2 is twice; 0.5 is one half of them, always the same."""


class Replay(Source):
    """General examples mixed in, so that what the base model can do is not forgotten."""

    share: float = Field(gt=0.0, lt=1.0)
    """Share of the training examples that come from here."""


class Data(Section):
    """The examples, as chat JSONL: one `{"messages": [...]}` a line, the assistant's answer last; other formats
    are converted."""

    train: str | list[Weighted]
    """File of the examples to learn from, or several, each with a weight."""
    validation: str | Annotated[float, Field(gt=0.0, lt=1.0)]
    """File of the examples watched during training, or the share of the training examples set aside for it."""
    test: str
    """File of the held-out examples the verdict is about."""
    prepare: Prepare | None = None
    """Makes the three files first; they are then names inside its output folder."""
    max_length: int = Field(512, ge=8)
    """Longest example, in tokens."""
    on_too_long: Literal["drop", "truncate", "error"] = "drop"
    """What to do with an example longer than `max_length`; what was done is counted in the report."""
    replay: Replay | None = None
    """General examples against forgetting."""
    dedupe: Literal["none", "exact", "near"] = "none"
    """Training examples left out: those seen before, or that stand in the validation or test file as well."""
    fatal: list[str] = []
    """Codes of `edgeft data check` (or their beginnings, like `E`) that stop the run."""
    text: str | None = None
    """File of plain text to go on pre-training with (`objective: text`): a .txt file, a blank line between two
    documents, or JSONL with `{"text": ...}`; also what is measured for forgetting when training is over."""
    preference: str | None = None
    """File of preferred and rejected answers (`objective: dpo` or `orpo`), in any format `edgeft data import`
    reads."""
    preference_validation: float = Field(0.1, gt=0.0, lt=1.0)
    """Share of the preference pairs set aside to be watched; never trained on."""
    swap_copied_values: int = Field(0, ge=0)
    """Variants of each training example in which values that the JSON answer copies from the request are swapped
    for others, so that a small model learns to copy."""

    def files(self) -> dict[str, str]:
        """Every file named here, by its key."""
        named = {"train": self.train} if isinstance(self.train, str) else {}
        if not isinstance(self.train, str):
            named |= {f"train.{at}": source.path for at, source in enumerate(self.train)}
        if isinstance(self.validation, str):
            named["validation"] = self.validation
        if self.replay is not None:
            named["replay"] = self.replay.path
        if self.text is not None:
            named["text"] = self.text
        if self.preference is not None:
            named["preference"] = self.preference
        return named | {"test": self.test}


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
    torch_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type the weights are held and multiplied in."""
    save_steps: int = Field(50, ge=1)
    """Optimizer steps between checkpoints."""
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


class PretrainTokenizer(Section):
    """A byte-level BPE tokenizer trained on the corpus, digits one by one (llama.cpp's `smollm`)."""

    vocab_size: int = Field(4096, ge=512)
    """Entries, special tokens and the 256 bytes included."""


class PretrainModel(Section):
    """Shape of the Llama model (transformers `LlamaConfig`)."""

    hidden_size: int = Field(256, ge=32)
    """Width of the residual stream; a multiple of 256 allows K-quants."""
    intermediate_size: int = Field(768, ge=32)
    """Width of the feed-forward layers."""
    num_hidden_layers: int = Field(8, ge=1)
    """Layers."""
    num_attention_heads: int = Field(4, ge=1)
    """Query heads."""
    num_key_value_heads: int = Field(2, ge=1)
    """Key and value heads."""
    max_position_embeddings: int = Field(1024, ge=16)
    """Context, in tokens."""
    rope_theta: float = Field(10000.0, gt=0.0)
    """Base of the rotary embedding."""


class Pretrain(Section):
    """Training a base model from nothing: tokenizer, then weights (Muon and AdamW)."""

    prepare: Prepare
    """Makes train.jsonl and validation.jsonl: one `{"text": ...}` or `{"messages": [...]}` a line. If it makes a
    last.jsonl too, training ends with one pass over that, while the learning rate falls."""
    tokenizer: PretrainTokenizer = PretrainTokenizer()
    """The tokenizer."""
    model: PretrainModel = PretrainModel()
    """The shape."""
    max_length: int = Field(1024, ge=8)
    """Longer documents are cut into pieces of this many tokens."""
    learning_rate: float = Field(3e-3, gt=0.0)
    """Peak learning rate."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "warmup_stable_decay"
    """Course of the learning rate after the warm-up."""
    warmup_steps: float = Field(0.02, ge=0.0)
    """Steps of linear warm-up; below 1 it is a share of all steps."""
    weight_decay: float = Field(0.05, ge=0.0)
    """Decoupled decay of the hidden matrices."""
    max_grad_norm: float = Field(1.0, ge=0.0)
    """Gradients are scaled down to this norm."""
    num_train_epochs: float = Field(1, gt=0.0)
    """Passes over train.jsonl."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in one optimizer step."""
    torch_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the multiplications; the weights that train stay in float32."""
    save_steps: int = Field(100, ge=1)
    """Optimizer steps between checkpoints."""
    eval_steps: int = Field(200, ge=1)
    """Optimizer steps between evaluations on validation.jsonl."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; null: torch's default."""


class Merge(Section):
    """The adapter folded into the base."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the merged weights on disk."""
    merge_base: Literal["16bit", "4bit", "auto"] = "16bit"
    """What an adapter trained on an NF4 base is folded into: the base as it was, the base as NF4 held it, or
    whichever has the lower validation loss."""


class Gguf(Section):
    """One GGUF file."""

    ftype: Ftype | Literal["auto"]
    """llama.cpp's name of the quantization; `auto`: the mix of types with the least divergence at the bytes of
    Q4_K_M, `target_bytes` or `max_kl`."""
    imatrix: bool = False
    """Weigh rounding errors by the squared activations of the training examples and general text."""
    rounding: Literal["nearest", "feedback"] = "nearest"
    """How weights get onto the grid: as llama.cpp rounds them, or so that later columns make up for the errors of
    earlier ones (GPTQ); `auto` always does the latter."""
    target_bytes: int | None = Field(None, ge=1)
    """Largest size of the tensors in bytes, for `auto`."""
    max_kl: float | None = Field(None, gt=0.0)
    """Largest mean KL divergence in nats a token on calibration tokens, for `auto`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ftype != "auto" and (self.target_bytes is not None or self.max_kl is not None):
            raise ValueError(f"target_bytes and max_kl plan the mix of ftype auto; {self.ftype} is what it is")
        if self.target_bytes is not None and self.max_kl is not None:
            raise ValueError("target_bytes or max_kl, not both: one is bounded, the other results")
        return self


def _default_gguf() -> list[Gguf]:
    return [Gguf(ftype="F16"), Gguf(ftype="Q8_0"), Gguf(ftype="Q4_K_M")]


class Onnx(Section):
    """One ONNX folder of a language model."""

    dtype: Literal["int4", "int8", "fp16", "fp32", "auto"]
    """Of the matrices; `auto`: the mix of grids with the least divergence at the bytes of int4 in blocks of 32, or
    `target_bytes`."""
    block_size: Literal[16, 32, 64, 128, 256] = 32
    """Weights that share a scale, of int4 and int8; onnxruntime's name."""
    symmetric: bool = True
    """No zero points, of int4 and int8; onnxruntime calls it is_symmetric."""
    method: Literal["rtn", "k_quant", "hqq", "gptq", "feedback"] = "k_quant"
    """How weights get onto the grid: to the nearest, by search or half-quadratic; or with later columns making up for
    errors of earlier ones, each calibration token counted alike (gptq) or by how much it matters (feedback, which
    `auto` always takes)."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    """MatMulNBits' own: 4 multiplies in int8, 1 in float32, 0 leaves it to onnxruntime."""
    head_dtype: Literal["int4", "int8", "fp16", "fp32"] | None = None
    """Of embedding and head; null: `dtype`."""
    activations: Literal["float32", "float16"] = "float32"
    """What int4 and int8 graphs compute in; float16 is for graphics cards."""
    layout: Literal["plain", "genai", "transformers.js"] = "genai"
    """Whose files stand beside the graph: optimum's, onnxruntime-genai's as well, or transformers.js'."""
    min_ort: str | None = Field(None, pattern=r"^\d+\.\d+$")
    """The oldest onnxruntime that must run it, such as 1.22; null: the oldest that can."""
    target_bytes: int | None = Field(None, ge=1)
    """Largest size of the packed matrices in bytes, for `auto`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.target_bytes is not None and self.dtype != "auto":
            raise ValueError(f"target_bytes plans the mix of dtype auto; {self.dtype} is what it is")
        return self

    @property
    def name(self) -> str:
        """Of the folder, such as `int4-32`, `int4-128-asymmetric-gptq`, `fp16` or `mix`."""
        if self.dtype == "auto":
            return "mix"
        if self.dtype in ("fp16", "fp32"):
            return self.dtype
        words = [self.dtype, str(self.block_size), *(["asymmetric"] if not self.symmetric else [])]
        words += [self.method] if self.method != "k_quant" else []
        words += ["fp16"] if self.activations == "float16" else []
        return "-".join([*words, *([f"head-{self.head_dtype}"] if self.head_dtype else [])])


class Encoder(Section):
    """One ONNX folder of a classifier."""

    dtype: Literal["fp32", "fp16", "int8", "int8_static"]
    """`int8` rounds the inputs of a product to the range they have in the batch; `int8_static` to one found on
    training texts, so that a text's label does not depend on its neighbours; fp16 is for graphics cards."""
    calibrate_method: Literal["minmax", "percentile", "entropy"] = "minmax"
    """How the ranges of `int8_static` are found; the names are those of onnxruntime's CalibrationMethod."""


def _default_encoder() -> list[Encoder]:
    return [Encoder(dtype="fp32"), Encoder(dtype="int8")]


class Export(Section):
    """The files to make."""

    gguf: list[Gguf] = Field(default_factory=_default_gguf, min_length=1)
    """GGUF files for llama.cpp, in the order they are made."""
    onnx: list[Onnx] = []
    """ONNX folders for onnxruntime, made after the GGUF files."""
    encoder: list[Encoder] = Field(default_factory=_default_encoder, min_length=1)
    """What is made in place of GGUF files where `train.objective` is classification: ONNX folders, the last of which
    ships."""
    ship: str | None = None
    """The file that is benchmarked and judged: an ftype of `gguf` or the folder of an entry of `onnx` (`int4-32`,
    `int4-128-asymmetric`, `fp16`, `mix`); null: the last of `gguf`."""
    calibration_tokens: int = Field(16384, ge=512)
    """Tokens of training examples and general text that `imatrix`, `auto`, `feedback` and `gptq` measure."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ftypes = [entry.ftype for entry in self.gguf]
        if len(set(ftypes)) < len(ftypes):
            raise ValueError("gguf lists an ftype twice")
        dtypes = [entry.dtype for entry in self.encoder]
        if len(set(dtypes)) < len(dtypes):
            raise ValueError("encoder lists a dtype twice")
        folders = [entry.name for entry in self.onnx]
        if len(set(folders)) < len(folders):
            raise ValueError("onnx lists a folder twice")
        if self.ship is not None and self.ship not in ftypes + folders:
            listed = f"the files of gguf ({', '.join(ftypes)})" + (
                f" and onnx ({', '.join(folders)})" if folders else ""
            )
            raise ValueError(f"ship: {self.ship} is not among {listed}")
        return self

    @property
    def shipped(self) -> str:
        """The name of what ships: an ftype, or the folder of an ONNX model."""
        return self.ship or self.gguf[-1].ftype


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
    latency: Latency = Latency()
    """How speed is measured."""
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
