"""Tiny tokenizers with the definitions of published ones, each trained in code."""

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from edgeft.export.folder import ModelFolder, read_folder
from edgeft.export.gguf.header import encode_header
from edgeft.export.gguf.strings import CODE, LANGUAGES, NUMBERS
from edgeft.export.gguf.vocabulary import vocabulary_metadata

CORPUS = [*LANGUAGES, *CODE, *NUMBERS] * 2
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
N_VOCAB = 1200

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
)
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+",
    )
)  # fmt: skip
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
IDEOGRAPHS = "[一-龥ࠀ-一가-퟿]+"


@dataclass(frozen=True)
class Family:
    """How to make a tokenizer, and what llama.cpp calls it."""

    make: Callable[[], Tokenizer]
    model: str
    pre: str = "default"
    config: dict[str, Any] = field(default_factory=dict)
    """Beside `bos_token`, … of tokenizer_config.json."""


def split(*patterns: str, behavior: str = "isolated", invert: bool = False) -> list[Any]:
    return [pre_tokenizers.Split(Regex(pattern), behavior, invert) for pattern in patterns]


def digits(individual: bool = True) -> Any:
    return pre_tokenizers.Digits(individual_digits=individual)


def gpt2_rule(**arguments: Any) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **arguments)


def byte_level(
    *steps: Any, normalizer: Any = None, n_vocab: int = N_VOCAB, ends: str | None = None, **bpe: Any
) -> Callable[[], Tokenizer]:
    """Byte-level BPE; where no step is GPT-2's rule, bytes without a rule come last."""
    has_rule = any(isinstance(step, pre_tokenizers.ByteLevel) for step in steps)

    def make() -> Tokenizer:
        tokenizer = Tokenizer(models.BPE(**bpe))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [*steps, *(() if has_rule else (gpt2_rule(use_regex=False),))]
        )
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=n_vocab,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        if ends is not None:
            tokenizer.post_processor = processors.TemplateProcessing(ends, special_tokens=[("<s>", 1), ("</s>", 2)])
        return tokenizer

    return make


def sentencepiece(
    normalizer: Any = None, pre_tokenizer: Any = None, added: Sequence[AddedToken] = (), ends: str = "<s> $A"
) -> Callable[[], Tokenizer]:
    """BPE over pieces with ▁ and byte tokens, with every merge of two pieces that make a third, as sentencepiece
    models are converted."""

    def make() -> Tokenizer:
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Metaspace()
        learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=900, show_progress=False))
        learned = json.loads(learner.to_str())["model"]["vocab"]
        texts = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learned, key=learned.get)]
        vocabulary = {text: token for token, text in enumerate(texts)}
        merges = [
            (text[:at], text[at:])
            for text in texts[len(SPECIAL) + 256 :]
            for at in range(1, len(text))
            if text[:at] in learned and text[at:] in learned
        ]
        tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        if normalizer is not None:
            tokenizer.normalizer = normalizer
        if pre_tokenizer is not None:
            tokenizer.pre_tokenizer = pre_tokenizer
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokenizer.add_special_tokens(SPECIAL)
        tokenizer.add_special_tokens([*added])
        tokenizer.post_processor = processors.TemplateProcessing(ends, special_tokens=[("<s>", 1), ("</s>", 2)])
        return tokenizer

    return make


def wordpiece(lowercase: bool, strip_accents: bool | None = None) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        trainer = trainers.WordPieceTrainer(vocab_size=N_VOCAB, special_tokens=special, show_progress=False)
        tokenizer.train_from_iterator(CORPUS, trainer)
        tokenizer.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
        )
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    return make


def unigram(*steps: Any, splits: Sequence[Any]) -> Callable[[], Tokenizer]:
    def make() -> Tokenizer:
        tokenizer = Tokenizer(models.Unigram())
        if steps:
            tokenizer.normalizer = normalizers.Sequence([*steps])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits])
        trainer = trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator(CORPUS, trainer)
        # Sentencepiece stores its scores as float32.
        learned = json.loads(tokenizer.to_str())["model"]["vocab"]
        tokenizer.model = models.Unigram([(text, float(np.float32(score))) for text, score in learned], unk_id=3)
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> </s> $B </s>", [("<s>", 0), ("</s>", 2)]
        )
        tokenizer.decoder = decoders.Metaspace()
        return tokenizer

    return make


def charsmap(spaces: str) -> bytes:
    """A sentencepiece normalizer (darts double array, then the replacements) that makes a space of `spaces`."""
    trie: dict[int, Any] = {}
    for character in spaces:
        node = trie
        for byte in character.encode():
            node = node.setdefault(byte, {})
    units = [0] * 4096
    taken = {0}

    def place(index: int, children: dict[int, Any], label: int) -> None:
        labels = [*children] or [0]
        base = next(n for n in range(256, 4096, 256) if not taken & {index ^ n ^ one for one in labels})
        units[index] = base << 10 | (not children) << 8 | label
        taken.update(index ^ base ^ one for one in labels)
        if not children:
            units[index ^ base] = 1 << 31  # the replacement at byte 0
        for byte, below in children.items():
            place(index ^ base ^ byte, below, byte)

    place(0, trie, 0)
    return struct.pack("<I4096I", 4 * 4096, *units) + b" \0"


def prepend_and_replace() -> Any:
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


CLEANS = {"clean_up_tokenization_spaces": True}
BERT = {"bos_token": None, "eos_token": None} | {
    f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")
}
PHI3 = [
    AddedToken(text, special=True, rstrip=text != "<|endoftext|>", normalized=False)
    for text in ("<|endoftext|>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|end|>")
]
FAMILIES: dict[str, Family] = {
    "GPT-2": Family(byte_level(gpt2_rule()), "gpt2", "gpt-2", CLEANS),
    "GPT-2, spaces kept": Family(byte_level(gpt2_rule()), "gpt2", "trillion"),
    "GPT-2, written as a split": Family(
        byte_level(gpt2_rule(), normalizer=normalizers.Sequence([])), "gpt2", "gpt-2", CLEANS
    ),
    "OLMo": Family(byte_level(gpt2_rule(), normalizer=normalizers.NFC()), "gpt2", "trillion"),
    "RoBERTa": Family(byte_level(gpt2_rule(), ends="<s> $A </s>"), "gpt2", "gpt-2", CLEANS),
    "SmolLM": Family(byte_level(digits(), gpt2_rule()), "gpt2", "smollm"),
    "StarCoder, Granite": Family(byte_level(digits(), gpt2_rule()), "gpt2", "starcoder", CLEANS),
    "Command R": Family(byte_level(digits(), gpt2_rule(), normalizer=normalizers.NFC()), "gpt2", "smollm"),
    "Llama 3": Family(byte_level(*split(LLAMA3), ignore_merges=True, ends="<s> $A"), "gpt2", "llama-bpe", CLEANS),
    "OLMo 2, Phi 4": Family(byte_level(*split(CL100K, behavior="removed", invert=True)), "gpt2", "dbrx"),
    "Qwen 2": Family(byte_level(*split(QWEN2), normalizer=normalizers.NFC()), "gpt2", "qwen2"),
    "StableLM 2": Family(byte_level(*split(QWEN2)), "gpt2", "stablelm2", CLEANS),
    "Qwen 3.5": Family(byte_level(*split(QWEN35), normalizer=normalizers.NFC()), "gpt2", "qwen35"),
    "Falcon": Family(
        byte_level(pre_tokenizers.Punctuation("contiguous"), gpt2_rule(), digits(False), *split("[0-9][0-9][0-9]")),
        "gpt2",
        "falcon",
    ),
    "DeepSeek Coder": Family(
        byte_level(*split("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", IDEOGRAPHS), digits()), "gpt2", "deepseek-coder"
    ),
    "BLOOM": Family(byte_level(*split(r" ?[^(\s|[.,!?…。，、।۔،])]+")), "gpt2", "bloom", CLEANS),
    "Laguna": Family(byte_level(*split(r"[^\n]+|[\n]+", QWEN2)), "gpt2", "laguna"),
    "Llama 2": Family(sentencepiece(prepend_and_replace()), "llama"),
    "CodeLlama without prefix": Family(sentencepiece(normalizers.Replace(" ", "▁")), "llama"),
    "Gemma": Family(
        sentencepiece(normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")), "llama"
    ),
    "Metaspace": Family(sentencepiece(None, pre_tokenizers.Metaspace(prepend_scheme="never", split=False)), "llama"),
    "Phi 3": Family(sentencepiece(prepend_and_replace(), added=PHI3), "llama"),
    "BERT": Family(wordpiece(lowercase=True), "bert", config=BERT),
    "BERT, cased": Family(wordpiece(lowercase=False), "bert", config=BERT),
    "XLM-RoBERTa": Family(
        unigram(
            normalizers.Precompiled(charsmap("\t\n\x0b\x0c\r\x85\xa0\u2003\u2028\u3000")),
            splits=[pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()],
        ),
        "t5",
        config={"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>"},
    ),
}
"""By whose definition it is."""

SLOW_FAMILIES: dict[str, Family] = {
    "GPT-4o, Phi 4 mini": Family(byte_level(*split(O200K), ignore_merges=True), "gpt2", "granite-embed-multi-97m"),
    "GPT-4o with merges": Family(byte_level(*split(O200K)), "gpt2", "granite-embed-multi-97m"),
    "Mistral Nemo": Family(byte_level(*split(TEKKEN), ignore_merges=True), "gpt2", "tekken"),
    "DeepSeek V3": Family(byte_level(*split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3)), "gpt2", "deepseek-v3"),
}
"""Rules that llama.cpp leaves to std::regex, which compiles them anew for every string."""


def save(family: Family, folder: Path, **config: Any) -> ModelFolder:
    """A folder with the tokenizer and no model; `config` adds to tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = family.make()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    named |= {"clean_up_tokenization_spaces": False, "unk_token": "<unk>"} | family.config | config
    kept = {key: value for key, value in named.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    vocab_size = tokenizer.get_vocab_size()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocab_size}))
    return read_folder(folder)


def write_header(folder: ModelFolder, path: Path, vocabulary: dict[str, Any] | None = None) -> Path:
    """A GGUF file that holds the vocabulary, that of the folder if None, and nothing else."""
    metadata = vocabulary or vocabulary_metadata(folder, folder.config["vocab_size"])
    path.write_bytes(encode_header({"general.architecture": "llama", "llama.block_count": 1, **metadata}, []))
    return path
