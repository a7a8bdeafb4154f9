"""A `tokenizer.json` as the `tokenizer.*` keys of a GGUF file.

Two families: byte-level BPE (GPT-2 and later) and sentencepiece's BPE (Llama 2 and its kin), which
transformers writes as BPE over text whose spaces are `▁`.
"""

import json
import re
from typing import Any

from gguf import TokenType

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.pretokenizers import pre_tokenizer_name
from edgeft.runtime.template import ChatTemplate, without_generation_tags

SPACE = "▁"
# With any other scheme Metaspace puts no space before a text that begins with one; llama.cpp always does.
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never"}
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
PROBE = "edgeft"
STOP_KEYS = ("eos", "eot", "eom")
"""llama.cpp's names for the tokens that end an answer, in the order they are given out."""


def vocabulary_metadata(folder: ModelFolder, n_vocab: int) -> Metadata:
    """The `tokenizer.*` keys for a model with `n_vocab` rows of embedding.

    Raises ModelError when llama.cpp has no tokenizer that gives the same ids, when there are more tokens than
    rows, or when no token ends an answer.
    """
    kind = folder.tokenizer["model"].get("type", "BPE")
    if kind != "BPE":
        raise ModelError(f"{folder.path}: a {kind} tokenizer; only BPE can be exported to GGUF")
    texts = _texts(folder, n_vocab)
    if "ByteLevel" in json.dumps(folder.tokenizer.get("pre_tokenizer")):
        metadata = _byte_level(folder.tokenizer)
    else:
        metadata = _sentencepiece(folder.tokenizer, texts)
    metadata["tokenizer.ggml.tokens"] = texts
    metadata["tokenizer.ggml.token_type"] = _types(folder.tokenizer, texts)
    metadata |= _special_tokens(folder)
    if folder.chat_template is not None:
        metadata["tokenizer.chat_template"] = without_generation_tags(folder.chat_template)
    return metadata


def stop_ids(folder: ModelFolder) -> list[int]:
    """Ids that end an answer: the tokenizer's EOS, the special token the chat template puts behind an answer,
    and those of the generation config (else of the config)."""
    declared = folder.generation_config.get("eos_token_id", folder.config.get("eos_token_id"))
    others = declared if isinstance(declared, list) else [declared]
    ids = [folder.special_id("eos"), _turn_end(folder), *others]
    return list(dict.fromkeys(token for token in ids if token is not None))


def _turn_end(folder: ModelFolder) -> int | None:
    """The first special token behind an assistant's message."""
    if folder.chat_template is None:
        return None
    texts = {f"{name}_token": folder.special_text(name) for name in ("bos", "eos", "unk", "pad")}
    template = ChatTemplate(folder.chat_template, {name: text for name, text in texts.items() if text})
    turn = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
    rendered = template.render(turn, tools=None, add_generation_prompt=False)
    behind = rendered[rendered.rindex(PROBE) + len(PROBE) :]
    added = {token["content"]: token["id"] for token in folder.tokenizer.get("added_tokens", [])}
    found = [(behind.index(text), -len(text), token) for text, token in added.items() if text in behind]
    return min(found)[2] if found else None


def _texts(folder: ModelFolder, n_vocab: int) -> list[str]:
    """The text of every id; rows of the embedding without a token get a name of their own."""
    ids = folder.token_ids
    highest = max(ids.values(), default=-1)
    if highest < 0:
        raise ModelError(f"{folder.path / 'tokenizer.json'}: it has no tokens; save the tokenizer again")
    if highest >= n_vocab:
        raise ModelError(f"{folder.path}: token id {highest} has no row in the embedding of {n_vocab} rows")
    by_id = {token_id: text for text, token_id in ids.items()}
    return [by_id.get(token_id, f"[PAD{token_id}]") for token_id in range(n_vocab)]


def _types(tokenizer: dict[str, Any], texts: list[str]) -> list[int]:
    ids = set(tokenizer["model"]["vocab"].values())
    types = [TokenType.NORMAL if token_id in ids else TokenType.UNUSED for token_id in range(len(texts))]
    if tokenizer["model"].get("byte_fallback", False):
        for token_id, text in enumerate(texts):
            if BYTE_TOKEN.fullmatch(text):
                types[token_id] = TokenType.BYTE
    for token in tokenizer.get("added_tokens", []):
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = tokenizer["model"].get("unk_token")
    if unknown in texts:
        types[texts.index(unknown)] = TokenType.UNKNOWN
    return [int(kind) for kind in types]


def _byte_level(tokenizer: dict[str, Any]) -> Metadata:
    normalizer = tokenizer.get("normalizer")
    # llama.cpp does not compose characters; most text already is composed, so NFC is let through.
    if normalizer not in (None, {"type": "NFC"}):
        raise ModelError(f"tokenizer.json: llama.cpp's byte-level BPE has no normalizer {json.dumps(normalizer)}")
    merges = tokenizer["model"].get("merges", [])
    if not merges:
        raise ModelError("tokenizer.json: no merges; llama.cpp needs at least one in byte-level BPE")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre_tokenizer_name(tokenizer),
        "tokenizer.ggml.merges": [" ".join(_pair(merge)) for merge in merges],
    }


def _sentencepiece(tokenizer: dict[str, Any], texts: list[str]) -> Metadata:
    """BPE over whole text, with spaces as `▁`.

    llama.cpp merges the neighbours whose joined piece has the highest score, so a piece's score is the
    negative rank of the first merge that makes it.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(tokenizer["model"].get("merges", [])):
        ranks.setdefault("".join(_pair(merge)), rank)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-ranks.get(text, len(ranks))) for text in texts],
        "tokenizer.ggml.add_space_prefix": _prefixes_space(tokenizer),
    }


def _prefixes_space(tokenizer: dict[str, Any]) -> bool:
    """Whether `▁` is put before the text. Raises ModelError where spaces become something else."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if pre_tokenizer is None:
        if normalizer == {"type": "Sequence", "normalizers": [prepend, replace]}:
            return True
        if normalizer in (replace, {"type": "Sequence", "normalizers": [replace]}):
            return False
    elif normalizer is None and pre_tokenizer == {**METASPACE, "split": pre_tokenizer.get("split")}:
        return False
    raise ModelError(
        f"tokenizer.json: the normalizer {json.dumps(normalizer, ensure_ascii=False)} with the pre-tokenizer "
        f"{json.dumps(pre_tokenizer, ensure_ascii=False)} is not known to split as llama.cpp does"
    )


def _special_tokens(folder: ModelFolder) -> Metadata:
    stops = stop_ids(folder)
    if not stops:
        raise ModelError(
            f"{folder.path}: no token ends an answer; set eos_token in tokenizer_config.json or "
            "eos_token_id in generation_config.json"
        )
    named = {
        "bos": folder.special_id("bos"),
        **dict(zip(STOP_KEYS, stops, strict=False)),
        "unknown": folder.special_id("unk"),
        "padding": folder.special_id("pad"),
    }
    metadata: Metadata = {
        f"tokenizer.ggml.{name}_token_id": token for name, token in named.items() if token is not None
    }
    first, last = _template_ends(folder.tokenizer.get("post_processor"))
    token_ids = folder.token_ids
    metadata["tokenizer.ggml.add_bos_token"] = first is not None and token_ids.get(first) == named["bos"]
    metadata["tokenizer.ggml.add_eos_token"] = last is not None and token_ids.get(last) == stops[0]
    return metadata


def _template_ends(processor: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts before and behind a text."""
    if processor is None:
        return None, None
    if processor["type"] == "Sequence":
        ends = [_template_ends(part) for part in processor["processors"]]
        return next((a for a, _ in ends if a), None), next((b for _, b in ends if b), None)
    if processor["type"] != "TemplateProcessing":
        return None, None
    names = [item.get("SpecialToken", {}).get("id") for item in processor["single"]]
    return names[0], names[-1]


def _pair(merge: str | list[str]) -> list[str]:
    """The two parts of a merge, which older files write with a space between."""
    return merge.split(" ") if isinstance(merge, str) else merge
