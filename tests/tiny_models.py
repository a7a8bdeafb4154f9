"""A tiny random model of every architecture the GGUF exporter knows, every part of which matters.

The settings are chosen to show a mistake: heads of a width that is not hidden_size / heads where the model allows
it, fewer key heads than heads, windows shorter than the text, soft-caps that bite, multipliers that are no
power of two, unusual epsilons and rotations. No norm is one and no bias zero.
"""

from pathlib import Path
from typing import Any

from tests.tiny import tiny_tokenizer

N_CONTEXT = 256
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": N_CONTEXT,
    "rms_norm_eps": 1e-3,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
}
WIDE = {"head_dim": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
}


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}


GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 50000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}
GEMMA = {**SMALL, **WIDE, "query_pre_attn_scalar": 24, "tie_word_embeddings": True}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.11,
    "residual_multiplier": 0.7,
    "logits_scaling": 1.3,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
ENCODER = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
POSITIONS = {"max_position_embeddings": N_CONTEXT, "layer_norm_eps": 1e-3}
MODERN = {**ENCODER, "num_hidden_layers": 4, "max_position_embeddings": N_CONTEXT, "norm_eps": 1e-3} | {
    "local_attention": 16,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 3000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

SEEDS = {"smollm2": 1, "qwen2, rope scaled by YaRN": 1, "qwen3": 2, "phi4-mini": 2}
"""With another than 0, where half precision turned one of 128 most likely tokens whose second was as likely."""

LAST_NORMS, LAST_GAIN = ("model.norm.weight", "transformer.ln_f.weight"), 8.0

DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SMALL, **WIDE, **rope(20000.0), "attention_bias": True, "mlp_bias": True}),
    "llama, rope scaled as Llama 3": ("LlamaForCausalLM", {**SMALL, "rope_parameters": LLAMA3}),
    "llama, rope scaled linearly": ("LlamaForCausalLM", {**SMALL, **rope(1e4, rope_type="linear", factor=3.0)}),
    "llama, rope scaled by YaRN": ("LlamaForCausalLM", {**SMALL, "rope_parameters": YARN}),
    "smollm2": ("LlamaForCausalLM", {**SMALL, "num_key_value_heads": 1, "tie_word_embeddings": True, **rope(1e5)}),
    "smollm3": ("SmolLM3ForCausalLM", {**SMALL, "num_hidden_layers": 5, "tie_word_embeddings": True, **rope(2e4)}),
    "mistral": ("MistralForCausalLM", {**SMALL, **WIDE, "sliding_window": 200, **rope(3e4)}),
    "qwen2": ("Qwen2ForCausalLM", {**SMALL, "tie_word_embeddings": True, **rope(1e6)}),
    "qwen2, rope scaled by YaRN": ("Qwen2ForCausalLM", {**SMALL, "rope_parameters": YARN | {"attention_factor": 1.3}}),
    "qwen3": ("Qwen3ForCausalLM", {**SMALL, **WIDE, **rope(1e6)}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**SMALL, **WIDE, **EXPERTS, **rope(1e6)}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**GEMMA, "sliding_window": 24, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0, **rope(3e4)},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**GEMMA, "num_hidden_layers": 7, "sliding_window": 24, "rope_parameters": GEMMA3_ROPE},
    ),
    "phi3": ("Phi3ForCausalLM", {**SMALL, "sliding_window": 200, **rope(2e4)}),
    "phi4-mini": (
        "Phi3ForCausalLM",
        {**SMALL, "max_position_embeddings": 512, "original_max_position_embeddings": 256, "tie_word_embeddings": True}
        | {"rope_parameters": LONG},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": N_CONTEXT, "layer_norm_epsilon": 1e-3}
        | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    ),
    "olmo2": ("Olmo2ForCausalLM", {**SMALL, **rope(5e5)}),
    "bitnet": ("BitNetForCausalLM", {**SMALL, "tie_word_embeddings": True, "hidden_act": "silu", **rope(2e4)}),
    "granite": ("GraniteForCausalLM", {**SMALL, **MULTIPLIERS, "attention_bias": True, **rope(3e4)}),
}
"""name -> (class of transformers, fields of its configuration)"""

ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertModel", {**ENCODER, **QUIET, **POSITIONS}),
    "bert, classifier": ("BertForSequenceClassification", {**ENCODER, **QUIET, **POSITIONS, "num_labels": 3}),
    "roberta": ("RobertaModel", {**ENCODER, **QUIET, **POSITIONS}),
    "roberta, classifier": ("RobertaForSequenceClassification", {**ENCODER, **QUIET, **POSITIONS, "num_labels": 3}),
    "distilbert": (
        "DistilBertModel",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": N_CONTEXT}
        | {"dropout": 0.0, "attention_dropout": 0.0},
    ),
    "nomic_bert": ("NomicBertModel", {**ENCODER, **QUIET, **POSITIONS, **rope(500.0)}),
    "modernbert": ("ModernBertModel", MODERN),
    "modernbert, classifier": (
        "ModernBertForSequenceClassification",
        {**MODERN, "num_labels": 3, "classifier_pooling": "mean"},
    ),
}


def make_model(folder: Path, kind: str, **fields: Any) -> Path:
    """Write the model `kind`, a key of DECODERS or ENCODERS, with its tokenizer to `folder`; returns it.

    `fields` overrides the configuration. The same arguments give the same bytes.
    """
    import torch
    import transformers

    name, chosen = (DECODERS | ENCODERS)[kind]
    tokenizer = tiny_tokenizer()
    if name.startswith("Qwen2"):  # transformers splits text by Qwen's rule whatever the folder says
        rules = transformers.Qwen2Tokenizer().backend_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = rules.pre_tokenizer
        tokenizer.backend_tokenizer.normalizer = rules.normalizer
    model_class = getattr(transformers, name)
    transformers.utils.logging.disable_progress_bar()
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    config = model_class.config_class(**tokens | chosen | fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEEDS.get(kind, 0))
        model = model_class(config)
        enliven(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def enliven(model: Any) -> None:
    """Draw every weight anew, so that a layer changes what it gets and the next token depends on the whole text.

    Embeddings are small beside what the layers add (a tied head would else repeat the last token), and the last
    norm is large, so that the logits have a clear maximum. No norm is one and no bias zero.
    """
    import torch

    n_vocab = model.config.vocab_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.05 if len(parameter) == n_vocab else 1.3 * parameter.shape[-1] ** -0.5)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
            if name in LAST_NORMS:
                parameter.add_(LAST_GAIN)
