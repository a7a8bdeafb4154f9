"""Sentencepiece's BPE (Llama 2 and its kin, Gemma), which transformers writes as BPE over text with `▁` for
spaces: llama.cpp's `llama`."""

import json

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers.base import SPACE, added_tokens, merge_parts, normalizers, pre_tokenizers

PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Behind REPLACE there is no space left to split at (Gemma).
SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}

PHI3_KEEPS_SPACE = {"<unk>", "<s>", "<|endoftext|>"}
"""What llama.cpp exempts when it lets the special tokens of a model named Phi-3 take the white space behind them."""


def metadata(folder: ModelFolder, texts: list[str]) -> Metadata:
    """The family's own keys. Raises ModelError where spaces become something else than llama.cpp makes of them.

    llama.cpp merges the neighbours whose joined piece has the highest score, so a piece's score is the
    negative rank of the first merge that makes it.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(folder.tokenizer["model"].get("merges", [])):
        ranks.setdefault("".join(merge_parts(merge)), rank)
    keys: Metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-ranks.get(text, len(ranks))) for text in texts],
        "tokenizer.ggml.add_space_prefix": space_prefix(folder) == "always",
    }
    if _strips_as_phi3(folder):
        # The file format has no key for it: llama.cpp goes by the model's name.
        keys["general.name"] = "phi-3"
    return keys


def space_prefix(folder: ModelFolder) -> str:
    """Where `▁` is put in front: `always` (of every piece of text between special tokens), `first` (only where
    the whole text begins with none), `never`.

    Raises ModelError where spaces become something else. `first` is neither of the two things llama.cpp can do,
    but the same as `never` for what a chat template renders, as long as that begins with a special token.
    """
    steps, splits = normalizers(folder.tokenizer), pre_tokenizers(folder.tokenizer)
    if steps == [PREPEND, REPLACE] and not splits:
        return "always"
    if steps == [REPLACE] and splits in ([], [SPLIT_AT_SPACES]):
        return "never"
    if not steps and len(splits) == 1 and splits[0]["type"] == "Metaspace":
        scheme = splits[0].get("prepend_scheme")
        if splits[0].get("replacement") == SPACE and (
            scheme == "never" or (scheme == "first" and folder.chat_template)
        ):
            return str(scheme)
    raise ModelError(
        f"tokenizer.json: the normalizer {json.dumps(folder.tokenizer.get('normalizer'), ensure_ascii=False)} with "
        f"the pre-tokenizer {json.dumps(folder.tokenizer.get('pre_tokenizer'), ensure_ascii=False)} is not known to "
        "split as llama.cpp does"
    )


def _strips_as_phi3(folder: ModelFolder) -> bool:
    strips = {token["content"]: token["rstrip"] for token in added_tokens(folder.tokenizer)}
    everyone = {*PHI3_KEEPS_SPACE, "</s>"} <= strips.keys()
    return everyone and all(strip != (text in PHI3_KEEPS_SPACE) for text, strip in strips.items())
