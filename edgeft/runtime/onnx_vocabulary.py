"""The tokenizer, chat template and configuration of a model folder, through `tokenizers` alone."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgeft.errors import ModelError
from edgeft.runtime.model import Message
from edgeft.runtime.template import ChatTemplate

TEMPLATE_TOKENS = {
    "bos": "bos",
    "eos": "eos",
    "unknown": "unk",
    "padding": "pad",
    "seperator": "sep",
    "cls": "cls",
    "mask": "mask",
}
"""GGUF's word for each special token (spelled as there), which both backends use, and transformers'."""
END_TOKENS = frozenset(
    ("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
     "<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<eos>")
)  # fmt: skip
"""Special tokens that end an answer whatever the configuration says: llama.cpp's list (`llama-vocab.cpp`), so that
both backends stop at the same place."""

BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class OnnxVocabulary:
    """What a model folder says in words; no weights are loaded. May be used from any thread."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelError when a file is missing or damaged."""
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.genai = read_json(folder / "genai_config.json")
        self._special = _special_tokens(folder)
        self._tokenizer: Any = _open_tokenizer(folder / "tokenizer.json")
        self._template: ChatTemplate | None = None
        self.eos_ids = frozenset(self._ends())
        self.metadata = self._metadata()

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """See `Model.render`."""
        return self._chat_template().render(messages, tools=tools, add_generation_prompt=add_generation_prompt)

    def check_chat(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> None:
        """See `TextModel.check_chat`."""
        self._chat_template().check(messages, tools)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            source = self.metadata.get("tokenizer.chat_template")
            if not source:
                raise ModelError(f"{self.folder}: the folder has no chat template; it cannot answer messages")
            names = TEMPLATE_TOKENS.values()
            variables = {f"{name}_token": self._special[name] for name in names if name in self._special}
            self._template = ChatTemplate(source, variables)
        return self._template

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See `Model.tokenize`. With `add_special` what the tokenizer adds around a text is added."""
        clean = text.encode(errors="replace").decode()  # a lone surrogate is no character
        ids: list[int] = self._tokenizer.encode(clean, add_special_tokens=add_special).ids
        return ids

    def detokenize(self, ids: Sequence[int]) -> str:
        """See `Model.detokenize`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def token_text(self, token: int) -> str:
        """The text of one entry of the vocabulary as the tokenizer spells it; empty for an id without one."""
        return self._tokenizer.id_to_token(token) or ""

    def is_control(self, token: int) -> bool:
        """Whether `token` is a special token that no ordinary text contains."""
        added = self._tokenizer.get_added_tokens_decoder().get(token)
        return added is not None and bool(added.special)

    def token_bytes(self) -> list[bytes]:
        """See `TextModel.token_bytes`; ids up to the largest of the tokenizer."""
        added = self._tokenizer.get_added_tokens_decoder()
        spell = _speller(json.loads(self._tokenizer.to_str()).get("decoder"))
        pieces = self._tokenizer.get_vocab(with_added_tokens=True)
        found = [b""] * (max(pieces.values(), default=-1) + 1)
        for text, token in pieces.items():
            found[token] = added[token].content.encode() if token in added else spell(text)
        return found

    def special_ids(self) -> frozenset[int]:
        """See `TextModel.special_ids`."""
        return frozenset(token for token in self._tokenizer.get_added_tokens_decoder() if self.is_control(token))

    def special_id(self, name: str) -> int | None:
        """The id the folder names for `bos`, `eos`, `padding`, `unknown`, …, or None."""
        text = self._special.get(TEMPLATE_TOKENS.get(name, name))
        found: int | None = None if text is None else self._tokenizer.token_to_id(text)
        return found

    def cache_sizes(self) -> dict[str, int]:
        """`num_key_value_heads` and `head_dim`, by config.json or else genai_config.json; 0 for what neither says."""
        decoder = self.genai.get("model", {}).get("decoder", {})
        sizes = decoder | {"head_dim": decoder.get("head_size")} | self.config
        heads = sizes.get("num_attention_heads") or 1
        return {
            "num_key_value_heads": sizes.get("num_key_value_heads") or heads,
            "head_dim": sizes.get("head_dim") or sizes.get("hidden_size", 0) // heads,
        }

    def _ends(self) -> Iterator[int]:
        """Ids of the end tokens: those the files name, and special tokens known to be one."""
        generation = read_json(self.folder / "generation_config.json")
        for content in (self.config, generation, self.genai.get("model", {})):
            named = content.get("eos_token_id")
            yield from named if isinstance(named, list) else [] if named is None else [named]
        if (eos := self.special_id("eos")) is not None:
            yield eos
        added = self._tokenizer.get_added_tokens_decoder().items()
        yield from (token for token, entry in added if entry.special and entry.content in END_TOKENS)

    def _metadata(self) -> dict[str, str]:
        """Under GGUF's keys where there is one."""
        model = self.genai.get("model", {})
        found = {"general.architecture": self.config.get("model_type") or model.get("type")}
        template = self.folder / "chat_template.jinja"
        if template.is_file():
            found["tokenizer.chat_template"] = template.read_text(encoding="utf-8")
        else:
            inside = read_json(self.folder / "tokenizer_config.json").get("chat_template")
            found["tokenizer.chat_template"] = inside if isinstance(inside, str) else None
        return {key: str(value) for key, value in found.items() if value}


def _speller(decoder: Any) -> Callable[[str], bytes]:
    """What makes the bytes of a vocabulary entry, by the `decoder` of tokenizer.json (one or a Sequence of them)."""
    parts = [] if decoder is None else decoder.get("decoders", [decoder])
    if any(part["type"] == "ByteLevel" for part in parts):
        table = {character: byte for byte, character in enumerate(_byte_characters())}
        return lambda text: bytes(table[character] for character in text)

    def spell(text: str) -> bytes:
        """Sentencepiece's way: `▁` is a space, `<0x0A>` a byte."""
        if BYTE_PIECE.fullmatch(text):
            return bytes.fromhex(text[3:5])
        return text.replace("▁", " ").encode()

    return spell


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`): itself where it is
    printable, else the next free one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    free = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(free)) for byte in range(0x100)]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty when there is no such file. Raises ModelError when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); export or copy it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path}: is no JSON object; export or copy it again")
    return content


def _special_tokens(folder: Path) -> dict[str, str]:
    """Text of each special token by transformers' word for it without `_token`."""
    content = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
    found = {}
    for name in TEMPLATE_TOKENS.values():
        value = content.get(f"{name}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _open_tokenizer(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; an ONNX folder needs its tokenizer beside the model")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # what `tokenizers` raises has no class of its own
        raise ModelError(f"{path}: not a tokenizer ({error}); export or copy it again") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
