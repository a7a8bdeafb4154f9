"""The recipe's section `pretrain`."""

from typing import Literal

from pydantic import Field

from edgeft.sections.base import Section, TorchDtype
from edgeft.sections.inputs import Prepare


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
    torch_dtype: TorchDtype = "auto"
    """Type of the multiplications; `auto`: bfloat16 where this machine multiplies it faster than float32, else
    float32. The weights that train stay in float32."""
    save_steps: int | None = Field(None, ge=1)
    """Optimizer steps between checkpoints, beside those that every minute and every epoch get; null: only these."""
    eval_steps: int = Field(200, ge=1)
    """Optimizer steps between evaluations on validation.jsonl."""
    num_threads: int | None = Field(None, ge=1)
    """CPU threads; null: torch's default."""
