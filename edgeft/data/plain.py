"""Plain text to go on pre-training with: what a base model does not know yet, without questions and answers."""

import json
from pathlib import Path
from typing import Any

from edgeft.data.surrogates import half_character
from edgeft.errors import DataError


def read_texts(path: Path) -> list[str]:
    """The documents of a file: `.jsonl` holds one `{"text": ...}` a line, anything else documents with a blank
    line between them.

    Raises DataError naming file and line when a line cannot be used, and when there is no document.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}: {error.reason}; save it as UTF-8") from error
    if path.suffix == ".jsonl":
        texts = [_text(line, f"{path}:{number}") for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    else:
        texts = [part.strip() for part in content.replace("\r\n", "\n").split("\n\n")]
    texts = [text for text in texts if text]
    if not texts:
        raise DataError(f"{path}: no text in this file")
    return texts


def encode_texts(texts: list[str], tokenizer: Any, max_length: int) -> list[tuple[list[int], list[bool]]]:
    """(ids, mask) of every document, all of it learned, its end included; cut into pieces of `max_length` tokens.

    A document begins with the tokenizer's BOS where it has one and ends with its EOS, as in pre-training.
    """
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoded = []
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        ids = [*([] if begin is None else [begin]), *ids, *([] if end is None else [end])]
        for at in range(0, len(ids), max_length):
            piece = ids[at : at + max_length]
            if len(piece) > 1:  # a token alone predicts nothing
                encoded.append((piece, [True] * len(piece)))
    return encoded


def _text(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise DataError(f'{where}: not an object with a "text"')
    if half := half_character(row["text"]):
        raise DataError(f"{where}: text holds {half}; it was cut inside a character: get it again")
    return str(row["text"]).strip()
