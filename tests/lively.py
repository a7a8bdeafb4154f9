"""A tiny random Llama every part of which matters: no bias is zero, and attention decides what comes next."""

from pathlib import Path
from typing import Any

from tests.tiny import make_tiny_llama


def make_lively_llama(path: Path, **config: Any) -> Path:
    """Write the model to the folder `path`; returns it. `config` overrides fields of `LlamaConfig`.

    It has grouped heads of a width that is not hidden_size / num_attention_heads, biases in attention and
    MLP, and its own output matrix. The same arguments give the same bytes.
    """
    import torch
    from transformers import AutoModelForCausalLM

    fields: dict[str, Any] = {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 32,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    make_tiny_llama(path, **(fields | config))
    model = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif name.endswith("norm.weight"):
                parameter.normal_(1.0, 0.2, generator=generator)
    model.save_pretrained(path)
    return path
