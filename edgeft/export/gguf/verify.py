"""Does llama.cpp read the vocabulary of a new file as transformers reads the tokenizer it came from?"""

import random
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.vocabulary import stop_ids
from edgeft.runtime.header import check_gguf
from edgeft.runtime.llama_vocabulary import LlamaVocabulary

N_RANDOM, SEED = 64, 20240229
TEXTS = (
    "Hello world",
    " leading and trailing ",
    "two  spaces   three\n\nnewlines\n\n\n and\ttabs\t\t",
    "   \n  \t \r\n",
    "I'm you're we'll they've HE'S o'clock 'quoted'",
    "0 12 345 6789 1234567890 3.14159 -1,000,000.00 ½ ² Ⅳ ٣",
    "snake_case camelCase kebab-case a.b.c@d.e https://example.org/a?b=c&d=e#f",
    '{"tool": "lights", "arguments": {"room": "kitchen", "level": 50}}',
    "if x != y: return [a[i] for i in range(10)]  # comment\n\treturn None;",
    "Ünïcödé naïve café Straße ŁÓDŹ ĳ ﬁ",
    "Привет мир, γειά σου κόσμε, שלום עולם, مرحبا بالعالم",
    "日本語のテキスト、中文文本。한국어 텍스트! ไทย हिन्दी",
    "😀 👩‍👩‍👧 🇩🇪 ✈️ e\u0301 \u200b\u00a0\ufeff",
    "!!! ??? ... --- *** ((( ))) $100 50% <tag> a<b>c &amp; ~`|\\",
    "A",
    " ",
)


def verify_vocabulary(path: Path, folder: ModelFolder, texts: Iterable[str] = ()) -> None:
    """Compare ids on TEXTS, added tokens in a sentence, random bytes and `texts`, and the end tokens.

    Raises ModelError that shows the first string with other ids, or the end token llama.cpp does not know.
    """
    tokenizer = _load_tokenizer(folder.path)
    # An NFC normalizer is the one difference let through (see vocabulary.py).
    composes = folder.tokenizer.get("normalizer") == {"type": "NFC"}
    check_gguf(path)
    with LlamaVocabulary(path) as vocabulary:
        for text in (*_strings(tokenizer), *texts):
            text = unicodedata.normalize("NFC", text) if composes else text
            if vocabulary.unwritable(text):
                continue
            theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
            _same(folder.path, text, theirs, vocabulary.tokenize(text))
        # What both put around a text: nothing is between.
        theirs = tokenizer("", add_special_tokens=True)["input_ids"]
        _same(folder.path, "", theirs, vocabulary.tokenize("", add_special=True))
        unknown = [token for token in stop_ids(folder) if token not in vocabulary.eos_ids]
    if unknown:
        raise ModelError(
            f"{folder.path}: the end tokens {unknown} do not fit a GGUF file, which names three; "
            "shorten eos_token_id in generation_config.json"
        )


def _load_tokenizer(path: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises anything at all on a bad tokenizer
        raise ModelError(f"{path}: transformers cannot load the tokenizer: {error}") from error


def _strings(tokenizer: Any) -> Iterator[str]:
    yield from TEXTS
    for token in tokenizer.get_added_vocab():
        yield f"{token}user\nHello{token}{token} {token} world{token}"
    source = random.Random(SEED)
    for length in range(1, N_RANDOM + 1):
        yield source.randbytes(length).decode("latin-1")
        yield source.randbytes(4 * length).decode("utf-8", errors="ignore")


def _same(folder: Path, text: str, theirs: list[int], ours: list[int]) -> None:
    if theirs != ours:
        raise ModelError(
            f"{folder}: llama.cpp tokenizes {text!r} otherwise than transformers: {ours}, not {theirs}; "
            "this tokenizer cannot be exported to GGUF"
        )
