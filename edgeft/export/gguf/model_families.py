"""What config.json says of a GGUF file, for each architecture whose files can be imported.

Each family reads back the keys that its module in `architectures/` writes; whether nothing was missed is proven by
the caller, which lets that module write them again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures.distilbert import OTHER_NAMES
from edgeft.export.gguf.architectures.granite import SCALES
from edgeft.export.gguf.read import GgufFile
from edgeft.runtime.llama_defaults import with_defaults

Settings = dict[str, Any]
LLAMA3: Settings = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_CONTEXT = 8192
"""Llama 3's scaling as every release has it; a file holds only the factors that come of it."""
LAYERS_A_PERIOD = {"gemma2": 2, "gemma3": 6}
"""One layer of so many sees everything, the last of them, where the file does not say which layers slide."""
POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken"}


@dataclass(frozen=True)
class Keys:
    """The `<architecture>.…` keys of a file, with llama.cpp's defaults for those left out, and its tensors."""

    file: GgufFile

    @cached_property
    def full(self) -> dict[str, Any]:
        """Every key without its beginning."""
        header, prefix = self.file.header, f"{self.file.header.architecture}."
        keys = {key.removeprefix(prefix): one.value for key, one in header.values.items() if key.startswith(prefix)}
        return with_defaults(header.architecture, keys, len(header.get("tokenizer.ggml.tokens")))

    def __call__(self, key: str, default: Any = None) -> Any:
        """The value of a key, a float in the fewest digits. Raises ModelError where it differs by layer."""
        found = self.raw(key, default)
        if not isinstance(found, int | float | str | type(None)):
            name = self.file.header.architecture
            raise ModelError(f"{self.file.header.path}: {name}.{key} differs by layer, which config.json cannot say")
        return shortest(found)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value of a key as it is stored, or as llama.cpp takes it for stored."""
        return self.full.get(key, default)

    def has(self, tensor: str) -> bool:
        """Whether the file holds the tensor."""
        return tensor in self.file.header.tensors

    def rows(self, tensor: str) -> int:
        """Rows of a tensor; 1 of none."""
        return self.file.header.tensors[tensor].shape[0] if self.has(tensor) else 1


@dataclass(frozen=True)
class Family:
    """How transformers calls the models of an architecture, and what config.json says of one."""

    model_type: str
    class_name: str
    settings: Callable[[Keys], Settings]


def shortest(value: Any) -> Any:
    """A float32 in the fewest digits that mean it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _decoder(get: Keys) -> Settings:
    """What every decoder with RMS norms has."""
    heads, width = get("attention.head_count"), get("embedding_length")
    return {
        "max_position_embeddings": get("context_length"),
        "hidden_size": width,
        "num_hidden_layers": get("block_count"),
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", width // heads),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(get),
        "hidden_act": "silu",
        "attention_bias": get.has("blk.0.attn_output.bias"),
        "mlp_bias": get.has("blk.0.ffn_gate.bias"),
        "tie_word_embeddings": not get.has("output.weight"),
    }


def _rope(get: Keys) -> Settings:
    rope = {"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)}
    scaling, factor = get("rope.scaling.type"), get("rope.scaling.factor")
    if scaling in ("linear", "yarn") and factor:
        rope |= {"rope_type": scaling, "factor": factor}
    original = get("rope.scaling.original_context_length")
    if scaling == "yarn":
        rope["original_max_position_embeddings"] = original
        if (scale := get.raw("rope.scaling.attn_factor")) != 1.0:  # llama.cpp has YaRN's own besides
            rope["attention_factor"] = scale * (0.1 * float(np.log(factor)) + 1.0)
    if get.has("rope_freqs.weight"):
        rope |= _llama3(get.file.read("rope_freqs.weight").astype(np.float64), rope["rope_theta"])
    return rope


def _llama3(factors: np.ndarray, theta: float) -> Settings:
    """The scaling whose factors these are: `llama3_factors` solved for the context, where one factor is blended."""
    factor, low, high = float(factors.max()), LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    context = LLAMA3_CONTEXT
    blended = np.flatnonzero((factors > 1.0) & (factors < factor))
    if blended.size:
        wavelength = 2 * np.pi * theta ** (blended[0] / len(factors))
        blend = (1 / factors[blended[0]] - 1 / factor) / (1 - 1 / factor)
        context = round(wavelength * (low + blend * (high - low)))
    return LLAMA3 | {"factor": factor, "original_max_position_embeddings": context}


def _granite(get: Keys) -> Settings:
    return _decoder(get) | {theirs: get(ours) for ours, theirs in SCALES.items()}


def _qwen3_moe(get: Keys) -> Settings:
    return _decoder(get) | {
        "num_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _gemma(get: Keys) -> Settings:
    """Gemma 2 and 3; the graph scales the queries by the width of a head, but for the largest by that of all."""
    settings = _decoder(get)
    largest = (get.file.header.architecture, settings["num_hidden_layers"]) in (("gemma2", 46), ("gemma3", 62))
    per_head = settings["hidden_size"] // settings["num_attention_heads"]
    del settings["hidden_act"]
    return settings | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": per_head if largest else settings["head_dim"],
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "layer_types": _layer_types(get, settings["num_hidden_layers"]),
        **({"sliding_window": window} if (window := get("attention.sliding_window")) else {}),
    }


def _gemma3(get: Keys) -> Settings:
    settings = _gemma(get)
    local = {"rope_type": "default", "rope_theta": get("rope.freq_base_swa", 10000.0)}
    return settings | {"rope_parameters": {"full_attention": settings["rope_parameters"], "sliding_attention": local}}


def _layer_types(get: Keys, n_layers: int) -> list[str]:
    every = LAYERS_A_PERIOD[get.file.header.architecture]
    if get("attention.sliding_window") is None:
        slides = [False] * n_layers
    else:
        usual = [layer % every != every - 1 for layer in range(n_layers)]
        slides = list(get.raw("attention.sliding_window_pattern", usual))
    return ["sliding_attention" if flag else "full_attention" for flag in slides]


def _phi3(get: Keys) -> Settings:
    settings = _decoder(get)
    rope = settings["rope_parameters"]
    rope["partial_rotary_factor"] = get("rope.dimension_count") / settings["head_dim"]
    settings["sliding_window"] = None
    if get("rope.scaling.type") == "longrope":
        original = get("rope.scaling.original_context_length")
        rope |= {"rope_type": "longrope", "attention_factor": get("rope.scaling.attn_factor")}
        rope["original_max_position_embeddings"] = settings["original_max_position_embeddings"] = original
        for length in ("long", "short"):
            factors = get.file.read(f"rope_factors_{length}.weight")
            rope[f"{length}_factor"] = [shortest(float(factor)) for factor in factors]
    return settings


def _gpt2(get: Keys) -> Settings:
    return {
        "n_positions": get("context_length"),
        "n_embd": get("embedding_length"),
        "n_layer": get("block_count"),
        "n_inner": get("feed_forward_length"),
        "n_head": get("attention.head_count"),
        "layer_norm_epsilon": get("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": not get.has("output.weight"),
    }


def _encoder(get: Keys) -> Settings:
    """What every encoder has; a head that classifies where there is one."""
    labels = get.raw("classifier.output_labels")
    return {
        "max_position_embeddings": get("context_length"),
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "intermediate_size": get("feed_forward_length"),
        "num_attention_heads": get("attention.head_count"),
        "layer_norm_eps": get("attention.layer_norm_epsilon"),
        "type_vocab_size": get.rows("token_types.weight"),
        **({"id2label": {str(i): label.decode() for i, label in enumerate(labels)}} if labels else {}),
    }


def _distilbert(get: Keys) -> Settings:
    settings = _encoder(get)
    del settings["type_vocab_size"], settings["layer_norm_eps"]
    return {OTHER_NAMES.get(name, name): value for name, value in settings.items()} | {"activation": "gelu"}


def _nomic(get: Keys) -> Settings:
    return _encoder(get) | {"hidden_act": "silu", "rope_parameters": _rope(get)}


def _modern(get: Keys) -> Settings:
    settings = _encoder(get)
    del settings["type_vocab_size"]
    settings["norm_eps"] = settings.pop("layer_norm_eps")
    bases = {"full_attention": "rope.freq_base", "sliding_attention": "rope.freq_base_swa"}
    pooling = get("classifier.pooling_type")
    every = 3  # one layer of so many sees everything, the first of them
    return settings | {
        "hidden_activation": get("hidden_activation"),
        "local_attention": get("attention.sliding_window"),
        "global_attn_every_n_layers": every,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": get(key)} for kind, key in bases.items()},
        **({"classifier_pooling": POOLINGS[pooling]} if pooling else {}),
    }


FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", _decoder),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", _decoder),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", _decoder),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", _decoder),
    "qwen3moe": Family("qwen3_moe", "Qwen3MoeForCausalLM", _qwen3_moe),
    "gemma2": Family("gemma2", "Gemma2ForCausalLM", _gemma),
    "gemma3": Family("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "phi3": Family("phi3", "Phi3ForCausalLM", _phi3),
    "gpt2": Family("gpt2", "GPT2LMHeadModel", _gpt2),
    "olmo2": Family("olmo2", "Olmo2ForCausalLM", _decoder),
    "granite": Family("granite", "GraniteForCausalLM", _granite),
    "bitnet": Family("bitnet", "BitNetForCausalLM", _decoder),
    "bert": Family("bert", "BertModel", _encoder),
    "nomic-bert": Family("nomic_bert", "NomicBertModel", _nomic),
    "modern-bert": Family("modernbert", "ModernBertModel", _modern),
}
"""llama.cpp's architecture -> its family. Mistral's files are Llama's, those of RoBERTa BERT's."""

DISTILBERT = Family("distilbert", "DistilBertModel", _distilbert)


def family_of(get: Keys) -> Family | None:
    """The family of a file; None where there is none."""
    family = FAMILIES.get(get.file.header.architecture)
    return DISTILBERT if family is FAMILIES["bert"] and not get.has("token_types.weight") else family
