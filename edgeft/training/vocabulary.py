"""Whether two models speak of the same tokens: what a comparison of their next-token distributions stands on."""

from importlib.resources import files
from pathlib import Path
from typing import Any

from edgeft.errors import ModelError
from edgeft.training.models import load_tokenizer
from edgeft.training.watching import CANARY

PROBES = ('  12,345.67\n\t{"key": [1, null]}', "Ça coûte 3 €, größer", "日本語 текст 🙂 <|im_start|>user\n")
SHOWN_TOKENS = 3


def shared_vocabulary(student: Path, teacher: Path) -> int | None:
    """How many ids, from 0, mean the same token to both folders' tokenizers; None where the tokenizers differ.

    A model's head may be wider: the columns behind are padding, rows that no id ever names (Qwen2.5: 151,936 in the
    small models and 152,064 in the large, 151,665 tokens in both). Tokenizers are the same when they have the same
    tokens under the same ids and cut texts alike.
    """
    ours, theirs = load_tokenizer(student), load_tokenizer(teacher)
    vocabulary = ours.get_vocab()
    if vocabulary != theirs.get_vocab() or _cuts(ours) != _cuts(theirs):
        return None
    return max(vocabulary.values()) + 1


def describe_difference(student: Path, teacher: Path) -> str:
    """Both tokenizers by name and size, and some tokens that only one has or that have another id."""
    known = [load_tokenizer(folder).get_vocab() for folder in (student, teacher)]
    odd = sorted(token for token in known[0].keys() | known[1].keys() if known[0].get(token) != known[1].get(token))
    examples = ", ".join(repr(token) for token in odd[:SHOWN_TOKENS])
    how = f"{len(odd):,} tokens differ, such as {examples}" if odd else "the same tokens, but texts are cut otherwise"
    return f"{student} ({len(known[0]):,} tokens) and {teacher} ({len(known[1]):,} tokens): {how}"


def check_heads(vocabulary: int, *models: Any) -> None:
    """Raises ModelError for a model whose head has no row for each of the `vocabulary` tokens."""
    for model in models:
        rows = model.config.get_text_config().vocab_size
        if rows < vocabulary:
            raise ModelError(
                f"{model.name_or_path}: its tokenizer has {vocabulary:,} tokens and its head {rows:,}; "
                "tokenizer and weights do not belong together"
            )


def _cuts(tokenizer: Any) -> list[list[int]]:
    """Ids of texts on which tokenizers that differ in their rules do differ."""
    texts = [*PROBES, *(files("edgeft") / "assets" / CANARY).read_text(encoding="utf-8").split("\n\n")]
    return [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
