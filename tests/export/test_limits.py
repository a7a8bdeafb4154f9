"""Where llama.cpp reads a vocabulary otherwise, the runtime gives the tokenizer's ids and the file says so."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from edgeft.console import silent_log
from edgeft.data.chat import Example
from edgeft.errors import ModelError
from edgeft.export.gguf.verify import known_limits, limits_note, verify_vocabulary
from edgeft.export.gguf.vocabulary import vocabulary_metadata
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from edgeft.runtime.splitting import LLAMA3, QWEN2
from edgeft.stages._limits import tell_limits
from tests.export.families import CORPUS, SPECIAL, Family, gpt2_rule, save, split, write_header
from tests.tiny import CHATML

ARROWS = "a -> b => c ... ;; == != </s> <|eot_id|> [EOT] ->-> x</s>y"


def byte_level(*steps: Any, missing: str = "", ordinary: str = "") -> Callable[[], Tokenizer]:
    """Byte-level BPE without the bytes `missing`, and with `ordinary` as a token that merges make."""

    def make() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = [one for one in pre_tokenizers.ByteLevel.alphabet() if one not in missing]
        trainer = trainers.BpeTrainer(
            vocab_size=700, special_tokens=["<unk>", "<s>", "<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet,
            show_progress=False,
        )  # fmt: skip
        tokenizer.train_from_iterator([*CORPUS, *[ARROWS] * 50], trainer)
        if not ordinary:
            return tokenizer
        content = json.loads(tokenizer.to_str())
        vocabulary, merges = content["model"]["vocab"], content["model"]["merges"]
        for n in range(2, len(ordinary) + 1):
            if ordinary[:n] not in vocabulary:
                vocabulary[ordinary[:n]] = len(vocabulary)
                merges.append([ordinary[: n - 1], ordinary[n - 1]])
        return Tokenizer.from_str(json.dumps(content))

    return make


def digits() -> Any:
    return pre_tokenizers.Digits(individual_digits=True)


def bytes_only() -> Any:
    return gpt2_rule(use_regex=False)


MISSING = {
    "smollm, without 13 and 04": (byte_level(digits(), gpt2_rule(), missing="\u0113\u0104"), "\x13\x04"),
    "gpt-2, without 0b": (byte_level(gpt2_rule(), missing="\u010b"), "\x0b"),
    "llama 3, without 1c": (byte_level(*split(LLAMA3), bytes_only(), missing="\u011c"), "\x1c"),
    "qwen 2, without f1 and f5": (byte_level(*split(QWEN2), bytes_only(), missing="ñõ"), "\U00040000"),
}
ORDINARY = {
    "</s>": byte_level(*split(QWEN2), bytes_only(), ordinary="</s>"),
    "<|eot_id|>": byte_level(gpt2_rule(), ordinary="<|eot_id|>"),
    "[EOT]": byte_level(digits(), gpt2_rule(), ordinary="[EOT]"),
    "<reponame>": byte_level(gpt2_rule(), ordinary="<reponame>"),
}
ENDS = {"bos_token": "<s>", "eos_token": "<|im_end|>"}


def folder_of(make: Callable[[], Tokenizer], path: Path) -> Any:
    return save(Family(make, "gpt2"), path, **ENDS, chat_template=CHATML)


@pytest.mark.parametrize("name", MISSING)
def test_bytes_without_a_token_are_dropped_before_the_merges(name: str, tmp_path: Path) -> None:
    make, dropped = MISSING[name]
    folder = folder_of(make, tmp_path / "model")
    file = write_header(folder, tmp_path / "model.gguf")
    proof = verify_vocabulary(file, folder, [f"a -{one}> b {one} c={one}= {one}{one}d" for one in dropped])
    assert proof.n_strings >= 2000
    assert "has no token for the bytes" in limits_note(folder)["tokenizer_limits"]
    theirs = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    with LlamaVocabulary(file) as vocabulary:
        for one in dropped:
            for text in (f"-{one}>", f"a{one}b", f"={one}=", f"  {one}b", f"<|im_start|>x -{one}>", one):
                assert vocabulary.tokenize(text) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_token_that_looks_like_a_control_token(name: str, tmp_path: Path) -> None:
    """It is no token to cut out of a text, and ends no answer."""
    folder = folder_of(ORDINARY[name], tmp_path / "model")
    file = write_header(folder, tmp_path / "model.gguf")
    verify_vocabulary(file, folder, [f"x{name}y", f" {name} "])
    theirs = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    token = theirs.token_to_id(name)
    with LlamaVocabulary(file) as vocabulary:
        assert token not in vocabulary.eos_ids
        assert not vocabulary.is_control(token)
        assert token not in vocabulary.special_ids()
        assert vocabulary.eos_ids >= {theirs.token_to_id("<|im_end|>")}
        assert vocabulary.detokenize([token, *vocabulary.tokenize("abc")]) == f"{name}abc"
        for text in (name, f"a{name}b", f"<|im_start|>{name} {name}<|im_end|>"):
            assert vocabulary.tokenize(text) == theirs.encode(text, add_special_tokens=False).ids, text


def test_where_no_type_is_written_llama_cpp_guesses(tmp_path: Path) -> None:
    """Files of a time without types of tokens: what looks like an end is one."""
    folder = folder_of(ORDINARY["<|eot_id|>"], tmp_path / "model")
    metadata = vocabulary_metadata(folder, folder.config["vocab_size"])
    metadata["tokenizer.ggml.token_type"] = [1] * len(metadata["tokenizer.ggml.token_type"])
    with LlamaVocabulary(write_header(folder, tmp_path / "model.gguf", metadata)) as vocabulary:
        assert folder.token_ids["<|eot_id|>"] in vocabulary.eos_ids


def test_beyond_the_limits_the_proof_still_fails(tmp_path: Path) -> None:
    folder = folder_of(MISSING["smollm, without 13 and 04"][0], tmp_path / "model")
    metadata = vocabulary_metadata(folder, folder.config["vocab_size"])
    metadata["tokenizer.ggml.merges"] = metadata["tokenizer.ggml.merges"][:-40]
    with pytest.raises(ModelError, match="otherwise than transformers"):
        verify_vocabulary(write_header(folder, tmp_path / "model.gguf", metadata), folder)


def test_a_whole_vocabulary_has_no_limits(tmp_path: Path) -> None:
    folder = folder_of(byte_level(gpt2_rule()), tmp_path / "model")
    assert not {*SPECIAL} - folder.token_ids.keys() - {"</s>"}
    assert known_limits(folder) == ()
    assert limits_note(folder) == {}


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"role": "user", "content": "so </s> then"}, 1),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"x": "a</s>"}}}]}, 1),
        ({"role": "user", "content": "nothing here"}, 0),
    ],
)
def test_training_texts_beyond_the_limits_are_told(message: dict[str, Any], found: int, tmp_path: Path) -> None:
    folder = folder_of(ORDINARY["</s>"], tmp_path / "model")
    example = Example(messages=[message], path=Path("train.jsonl"), line=7, extra={})
    said: list[str] = []

    class Log:
        say = staticmethod(said.append)
        progress = staticmethod(silent_log().progress)

    told = tell_limits([example], folder.path, Log())  # type: ignore[arg-type]
    assert sum(told.values()) == found
    assert len(said) == found
    assert all("train.jsonl:7" in text for text in said)
