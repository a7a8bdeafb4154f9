"""config.json for the metadata of a GGUF file.

What comes out is proven by the architecture's own module: from this config.json it must give the metadata of the
file again, key by key.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeft.errors import ModelError
from edgeft.export.gguf.architectures import Architecture, architecture_of
from edgeft.export.gguf.model_families import FAMILIES, POOLINGS, Keys, family_of, shortest
from edgeft.export.gguf.read import GgufFile
from edgeft.runtime.header_vocabulary import special_id
from edgeft.runtime.llama_defaults import with_defaults

TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}
LEFT_OUT = ("attention.causal",)
"""Keys that files of other tools leave out where the graph takes the same for granted."""
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def config_of(file: GgufFile, dtype: str) -> tuple[dict[str, Any], Architecture]:
    """The content of config.json with weights of `dtype`, and the architecture that writes it.

    Raises ModelError, naming the architecture or the key, when config.json could not say what the file says.
    """
    header, keys = file.header, Keys(file)
    family = family_of(keys)
    if family is None:
        raise ModelError(
            f"{header.path}: files of the architecture {header.architecture!r} cannot be imported; "
            f"supported: {', '.join(sorted(FAMILIES))}"
        )
    settings = family.settings(keys)
    class_name = family.class_name
    if "id2label" in settings:
        class_name = class_name.replace("Model", "ForSequenceClassification")
    config = {
        "architectures": [class_name],
        "model_type": family.model_type,
        "dtype": dtype,
        **settings,
        "vocab_size": len(header.get("tokenizer.ggml.tokens")),
        **{f"{token}_token_id": special_id(header, key) for token, key in TOKENS.items()},
    }
    architecture = architecture_of(config, header.path)
    _prove(file, {**architecture.defaults, **config}, architecture)
    return config, architecture


def pooling_files(file: GgufFile) -> dict[str, Any]:
    """{file name: content} of a sentence-transformers folder, for a model that pools its tokens into one vector."""
    pooling = POOLINGS.get(Keys(file)("pooling_type", 0))
    if pooling is None:
        return {}
    width = Keys(file)("embedding_length")
    return {
        "modules.json": MODULES,
        "1_Pooling/config.json": {"word_embedding_dimension": width, "pooling_mode": pooling},
    }


def _prove(file: GgufFile, config: dict[str, Any], architecture: Architecture) -> None:
    """Raise ModelError unless the architecture's module gives the file's keys and made tensors for `config`."""
    header, prefix = file.header, f"{file.header.architecture}."
    ours: Mapping[str, Any] = architecture.hyperparameters(config)
    ours = {key: value for key, value in ours.items() if not key.startswith("tokenizer.")}
    ours = with_defaults(architecture.name, ours, len(header.get("tokenizer.ggml.tokens")))
    theirs = dict(Keys(file).full)
    if theirs.get("pooling_type") in POOLINGS:  # said beside config.json, see `pooling_files`
        del theirs["pooling_type"]
    for key in sorted({*ours, *theirs}):
        if key in ours and key not in theirs and key in LEFT_OUT:
            continue
        if _comparable(ours.get(key)) != _comparable(theirs.get(key)):
            raise ModelError(
                f"{header.path}: {prefix}{key} is {theirs.get(key)}, which config.json cannot say (it would become "
                f"{ours.get(key)}); this model cannot be imported"
            )
    for rule in architecture.tensors(config):
        if not rule.sources and not np.array_equal(rule.change(), file.read(rule.name)):
            raise ModelError(f"{header.path}: {rule.name} holds other factors than Llama 3's; it cannot be imported")


def _comparable(value: Any) -> Any:
    """A value as a file holds it: floats of 32 bits, texts as bytes."""
    if isinstance(value, list | tuple | np.ndarray):
        return [_comparable(one) for one in value]
    return value.encode() if isinstance(value, str) else shortest(value)
