"""Every family of tokenizers: llama.cpp and the tokenizers library give the same ids; planted faults are found."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from edgeft.errors import ModelError
from edgeft.export.gguf.verify import load_tokenizer, proof_strings, verify_vocabulary
from edgeft.export.gguf.vocabulary import vocabulary_metadata
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from tests.export.families import FAMILIES, SLOW_FAMILIES, Family, save, write_header
from tests.tiny import CHATML

EVERY = [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FAMILIES)]


def family(name: str) -> Family:
    return (FAMILIES | SLOW_FAMILIES)[name]


@pytest.mark.parametrize("name", EVERY)
def test_every_family_is_recognised_and_proven(name: str, tmp_path: Path) -> None:
    folder = save(family(name), tmp_path / "model")
    file = write_header(folder, tmp_path / "model.gguf")
    verify_vocabulary(file, folder)
    with LlamaVocabulary(file) as vocabulary:
        assert vocabulary.metadata["tokenizer.ggml.model"] == family(name).model
        assert vocabulary.metadata["tokenizer.ggml.pre"] == family(name).pre


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokenizers_library_gives_what_transformers_gives(name: str, tmp_path: Path) -> None:
    """So an export may leave transformers, which imports torch, alone."""
    folder = save(family(name), tmp_path)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    strings = proof_strings(folder, ours)
    assert len(set(strings)) >= 2000
    assert [ours.encode(text, add_special_tokens=False).ids for text in strings] == theirs(
        strings, add_special_tokens=False
    ).input_ids
    assert ours.encode("", add_special_tokens=True).ids == theirs("", add_special_tokens=True).input_ids


def test_given_texts_are_compared_too(tmp_path: Path) -> None:
    """transformers gives up on a word of more than 100 letters, llama.cpp does not; no string of the proof has one."""
    folder = save(FAMILIES["BERT"], tmp_path / "model")
    file = write_header(folder, tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=f"tokenizes '{'a' * 101}' otherwise than transformers"):
        verify_vocabulary(file, folder, ["fine", "a" * 101])


def test_a_changed_vocabulary_is_still_recognised(tmp_path: Path) -> None:
    """Not the ids of some text decide, but the definition."""
    folder = save(FAMILIES["Llama 3"], tmp_path / "model")
    for added in ("<|new|>", " more"):
        folder.tokenizer["added_tokens"].append(added_token(folder, added))
    (folder.path / "tokenizer.json").write_text(json.dumps(folder.tokenizer), encoding="utf-8")
    folder.config["vocab_size"] += 2
    changed = replace(folder)  # forgets the ids it has counted
    verify_vocabulary(write_header(changed, tmp_path / "model.gguf"), changed)


def added_token(folder: Any, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    highest = max(token["id"] for token in folder.tokenizer["added_tokens"])
    return {"id": max(highest, folder.config["vocab_size"] - 1) + 1, "content": content, "special": False, **flags}


def off_by_one(metadata: dict[str, Any]) -> None:
    """The ids of <|im_start|> and <|im_end|> exchanged."""
    texts = metadata["tokenizer.ggml.tokens"]
    texts[3], texts[4] = texts[4], texts[3]


def shifted_by_padding(metadata: dict[str, Any]) -> None:
    """A row of padding in front of the learned tokens instead of behind them."""
    texts = metadata["tokenizer.ggml.tokens"]
    texts.insert(300, "[PAD300]")
    texts.pop()


def other_pre_tokenizer(metadata: dict[str, Any]) -> None:
    metadata["tokenizer.ggml.pre"] = "gpt-2"


def other_bos(metadata: dict[str, Any]) -> None:
    metadata["tokenizer.ggml.add_bos_token"] = True


def space_in_template(metadata: dict[str, Any]) -> None:
    key = "tokenizer.chat_template"
    metadata[key] = metadata[key].replace("assistant\\n", "assistant\\n ")


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "added-token id off by one": (off_by_one, r"tokenizes '.*<\|im_(start|end)\|>.*' otherwise .*'<\|im_"),
    "padded vocabulary": (shifted_by_padding, r"tokenizes .* otherwise .* from token 0 on \[.*\['"),
    "pre-tokenizer swapped": (other_pre_tokenizer, r"tokenizes .* otherwise than transformers: from token \d+ on"),
    "a BOS too many": (other_bos, r"around a text transformers puts \[\], llama.cpp \['1 <s>'\]"),
    "white space in the template": (
        space_in_template,
        r"conversation 'one question': the file's template renders it otherwise: .*'.*assistant\\n ' at character \d+",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_found_and_named(name: str, tmp_path: Path) -> None:
    plant, said = FAULTS[name]
    folder = save(FAMILIES["Qwen 2"], tmp_path / "model", chat_template=CHATML)
    metadata = vocabulary_metadata(folder, folder.config["vocab_size"])
    verify_vocabulary(write_header(folder, tmp_path / "right.gguf", metadata), folder)
    plant(metadata)
    with pytest.raises(ModelError, match=said):
        verify_vocabulary(write_header(folder, tmp_path / "wrong.gguf", metadata), folder)
