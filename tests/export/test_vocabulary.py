"""Vocabularies in llama.cpp give the ids transformers gives."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgeft.errors import ModelError, RuntimeFault
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from edgeft.runtime.splitting import LLAMA3, QWEN2
from tests.tiny import CHATML, TEXT, make_tiny_llama

MORE_TEXT = (
    f"{TEXT}\nIt's 1234 o'clock, they'll WE'RE don't   spaces\n\n\tcafé naïve Straße Привет мир 日本語 !!! ... x1y2"
)
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(pre_tokenizer: Any, **bpe: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**bpe))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(MORE_TEXT.splitlines(), trainer)
    return tokenizer


def split(pattern: str) -> Any:
    """The way Llama 3 and Qwen 2 write their rule."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def smollm() -> Any:
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])


def qwen2() -> Tokenizer:
    tokenizer = byte_level(split(QWEN2))
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def sentencepiece(normalizer: Any = None, pre_tokenizer: Any = None) -> Tokenizer:
    """BPE over pieces with ▁, learned from TEXT, with byte tokens, as Llama 2's is written."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(TEXT.splitlines(), trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    texts = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    vocabulary = {text: token for token, text in enumerate(texts)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", *SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2(prefix: bool = True) -> Tokenizer:
    steps = [normalizers.Prepend("▁")] if prefix else []
    return sentencepiece(normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")]))


TOKENIZERS: dict[str, tuple[Callable[[], Tokenizer], str, str]] = {
    "gpt-2": (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)), "gpt2", "trillion"),
    "smollm": (lambda: byte_level(smollm()), "gpt2", "smollm"),
    "llama-bpe": (lambda: byte_level(split(LLAMA3), ignore_merges=True), "gpt2", "llama-bpe"),
    "qwen2": (qwen2, "gpt2", "qwen2"),
    "llama 2": (llama2, "llama", "default"),
    "llama 2 without prefix": (lambda: llama2(prefix=False), "llama", "default"),
    "metaspace": (
        lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)),
        "llama",
        "default",
    ),
}


def save(tokenizer: Tokenizer, folder: Path, **special: str) -> Path:
    """A model folder with this tokenizer."""
    make_tiny_llama(folder, vocab_size=tokenizer.get_vocab_size(), num_hidden_layers=1)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **({"bos_token": "<s>", "eos_token": "</s>"} | special),
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": len(fast), "eos_token_id": fast.eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").unlink()
    resize(folder, len(fast))
    return folder


def resize(folder: Path, n_rows: int) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = np.zeros((n_rows, 64), np.float32)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(scope="module", params=TOKENIZERS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, write: Any) -> Any:
    """(transformers' tokenizer, llama.cpp's vocabulary, whether text is composed first)."""
    make, model, pre = TOKENIZERS[request.param]
    folder = save(make(), tmp_path_factory.mktemp("tokenizer"))
    file = write(folder, folder / "model.gguf")
    with LlamaVocabulary(file) as vocabulary:
        assert vocabulary.metadata["tokenizer.ggml.model"] == model
        assert vocabulary.metadata["tokenizer.ggml.pre"] == pre
        yield PreTrainedTokenizerFast.from_pretrained(folder), vocabulary, request.param == "qwen2"


pieces = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="abcXYZ 019'.,\n\t", max_size=20),
    st.sampled_from([*SPECIAL, "  ", "\n\n", " \n ", "'ll", "123", "½", "é", "e\u0301", "😀", "▁", "\u00a0"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(pieces, max_size=8))
def test_ids_are_transformers_ids(both: Any, parts: list[str]) -> None:
    tokenizer, vocabulary, composes = both
    text = "".join(parts)
    text = unicodedata.normalize("NFC", text) if composes else text
    assert vocabulary.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids


def test_half_a_character_is_no_crash(both: Any) -> None:
    _, vocabulary, _ = both
    assert vocabulary.tokenize("a\ud800b") == vocabulary.tokenize("a?b")


def test_text_comes_back(both: Any) -> None:
    tokenizer, vocabulary, _ = both
    ids = tokenizer("<|im_start|>It's 12:30, café 😀.<|im_end|>", add_special_tokens=False).input_ids
    expected = tokenizer.decode(ids, skip_special_tokens=True)
    # Both leave out the space that the tokenizer put in front.
    assert vocabulary.detokenize(ids).removeprefix(" ") == expected.removeprefix(" ")


def test_special_tokens_and_flags(both: Any) -> None:
    tokenizer, vocabulary, _ = both
    assert vocabulary.special_id("bos") == tokenizer.bos_token_id
    assert vocabulary.special_id("eos") == tokenizer.eos_token_id
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert vocabulary.eos_ids == ends
    # The template begins with no BOS, so what llama.cpp's server makes of a rendered one must not either.
    assert vocabulary.tokenize("Hello", add_special=True) == tokenizer("Hello", add_special_tokens=False).input_ids


def test_the_templates_end_of_turn_ends_an_answer(tmp_path: Path, write: Any) -> None:
    """Also where llama.cpp does not know the token by name and no config lists it."""
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens(["<turn>", "</turn>"])
    folder = save(tokenizer, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<turn>{{ m.role }}\n{{ m.content }}</turn>\n{% endfor %}"
    )
    with LlamaVocabulary(write(folder, tmp_path / "model.gguf")) as vocabulary:
        token = tokenizer.token_to_id("</turn>")
        assert vocabulary.special_id("eot") == token
        assert vocabulary.eos_ids == {tokenizer.token_to_id("</s>"), token, tokenizer.token_to_id("<|im_end|>")}


def test_a_vocabulary_without_bytes_cannot_write_everything(tmp_path: Path, write: Any) -> None:
    """llama.cpp would end the process on a character that such a vocabulary does not have."""
    vocabulary = {text: token for token, text in enumerate(["<unk>", "<s>", "</s>", "▁", *"abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    folder = save(tokenizer, tmp_path / "model")
    with LlamaVocabulary(write(folder, tmp_path / "model.gguf")) as opened:
        text = "<s>ab c<unk>a"
        assert opened.tokenize(text) == tokenizer.encode(text, add_special_tokens=False).ids
        for unwritable in ("a\n", "<", "é", "abcd"):
            with pytest.raises(RuntimeFault, match="no token for"):
                opened.tokenize(unwritable)


def lstrip() -> Tokenizer:
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_special_tokens([AddedToken("<eats>", lstrip=True, special=True)])
    return tokenizer


REFUSED: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "a space in front": (lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), "is not known to split"),
    "an unknown rule": (
        lambda: byte_level(
            pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        ),
        r'"Punctuation".*is not known to split as one of llama\.cpp\'s \(trillion, gpt-2, smollm, .*falcon\)',
    ),
    "an unknown regex": (lambda: byte_level(split(r"\w+|\W+")), "is not known to split"),
    "another model": (
        lambda: Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        "WordLevel tokenizer; llama.cpp has",
    ),
    "bytes in unigram": (
        lambda: Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, byte_fallback=True)),
        "unigram tokenizer with byte_fallback",
    ),
    "another word piece": (lambda: Tokenizer(models.WordPiece({"a": 0}, unk_token="a")), "is not BERT's"),
    "a space in front of text without one": (
        lambda: sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="always", split=False)),
        "is not known to split",
    ),
    "lower case": (lambda: sentencepiece(normalizers.Lowercase()), "is not known to split"),
    "a token that eats spaces": (lstrip, r"tokenizes .*<eats>.* otherwise than transformers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_read_otherwise_is_refused(name: str, tmp_path: Path, write: Any) -> None:
    make, said = REFUSED[name]
    folder = save(make(), tmp_path / "model")
    with pytest.raises(ModelError, match=said):
        write(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


def test_a_piece_no_merge_makes_is_found(tmp_path: Path, write: Any) -> None:
    """transformers never uses it, llama.cpp's sentencepiece does: a string of the vocabulary's own pieces shows it."""
    content = json.loads(llama2().to_str())
    content["model"]["vocab"] |= {"qqq": len(content["model"]["vocab"]), "qq": len(content["model"]["vocab"]) + 1}
    folder = save(Tokenizer.from_str(json.dumps(content)), tmp_path / "model")
    with pytest.raises(ModelError, match=r"tokenizes '.*qq.*' otherwise than transformers: from token \d+ on"):
        write(folder, tmp_path / "model.gguf")
