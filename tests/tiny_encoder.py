"""Tiny random encoders made in code: BERT, DistilBERT, RoBERTa and ModernBERT over a vocabulary of words."""

from pathlib import Path
from typing import Any

WORDS = "turn on off the light lamp play stop some music song please now in kitchen bedroom".split()
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {**SMALL, **QUIET}),
    "distilbert": (
        "DistilBert",
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "dropout": 0.0, "attention_dropout": 0.0}
        | {"seq_classif_dropout": 0.0},
    ),
    "roberta": ("Roberta", {**SMALL, **QUIET, "max_position_embeddings": 40}),
    "modernbert": ("ModernBert", {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 4}),
}


def make_tiny_encoder(path: Path, kind: str, *, seed: int = 0) -> Path:
    """Write a random encoder of `kind` (a key of KINDS) without a head, and its tokenizer, to `path`; returns it.

    The same arguments give the same bytes. Dropout is zero.
    """
    import torch
    import transformers

    name, fields = KINDS[kind]
    shared = {"vocab_size": 4 + len(WORDS), "pad_token_id": 0, "initializer_range": 0.2}
    config = getattr(transformers, f"{name}Config")(**shared | fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        getattr(transformers, f"{name}Model")(config).save_pretrained(path)
    word_tokenizer().save_pretrained(path)
    return path


def word_tokenizer() -> Any:
    """A `PreTrainedTokenizerFast`: one token a word, [CLS] before and [SEP] behind, at most 32 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=32,
    )  # fmt: skip
