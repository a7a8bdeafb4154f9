"""Does llama.cpp read a new file's vocabulary and chat template as transformers reads those they came from?

transformers tokenizes with the `tokenizers` library; it is asked directly, which spares the import of torch.
Only the header of the file is looked at.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.contract import verify_contract
from edgeft.export.gguf.strings import fixed_strings, piece_strings, special_strings
from edgeft.export.gguf.tokenizers import byte_level, unigram, wordpiece
from edgeft.export.gguf.tokenizers.base import added_tokens, model_type
from edgeft.export.gguf.tokenizers.pretokenizers import ignores_merges
from edgeft.export.gguf.tokenizers.sentencepiece import space_prefix
from edgeft.export.gguf.tokenizers.special import Ends, ends_of, template_of
from edgeft.runtime.llama_limits import CONTROL_LOOKING, text_limits
from edgeft.runtime.llama_vocabulary import LlamaVocabulary
from edgeft.runtime.splitting import Limit

N_PIECES = 1000
"""Pieces of the vocabulary that the strings made for it are drawn from."""
SHOWN_TOKENS, SHOWN_CHARACTERS = 4, 200
"""How much of a string and its ids a message shows: tokens on either side of the first difference."""


@dataclass(frozen=True)
class Proof:
    """What was compared: `n_strings`, and {why: strings} that llama.cpp alone is known to tokenize otherwise."""

    n_strings: int
    beyond: Mapping[str, int]

    def __str__(self) -> str:
        told = f"{self.n_strings:,} strings have the same ids as in transformers"
        if not self.beyond:
            return told
        kinds = "; ".join(f"{count:,}: {why}" for why, count in self.beyond.items())
        return f"{told}; beyond what llama.cpp alone can tokenize are {sum(self.beyond.values()):,} more ({kinds})"


def verify_vocabulary(path: Path, folder: ModelFolder, texts: Iterable[str] = ()) -> Proof:
    """Compare ids on more than 2,000 strings and `texts`, what both put around a text, the end tokens, and the
    chat template on a suite of conversations; says how much was compared.

    The ids are those of our runtime, which tokenizes by itself where llama.cpp alone cannot. Raises ModelError that
    shows the first string with other ids, the end token llama.cpp does not know, or the conversation that is rendered
    otherwise.
    """
    tokenizer = load_tokenizer(folder.path)
    with LlamaVocabulary(path) as vocabulary:
        proof = _Proof(folder, tokenizer, vocabulary)
        proof.run(proof_strings(folder, tokenizer), skip=True)
        proof.run(list(texts), skip=False)
        template = template_of(folder)
        ends = ends_of(folder, template)
        _verify_ends(folder, ends, tokenizer, vocabulary)
        if template is not None:
            verify_contract(folder.path, template, ends, tokenizer, vocabulary)
    return Proof(proof.n_strings, dict(proof.beyond))


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model folder, set to give every id of a text. Raises ModelError when it is broken."""
    try:
        tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{path / 'tokenizer.json'}: it cannot be loaded: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def proof_strings(folder: ModelFolder, tokenizer: Tokenizer) -> list[str]:
    """Every string of the proof for this tokenizer."""
    added = {token["content"] for token in added_tokens(folder.tokenizer)}
    ordinary = [token for text, token in folder.token_ids.items() if text not in added]
    tried = ordinary if _mixes_merges(folder) else ordinary[:: max(1, len(ordinary) // N_PIECES)]
    pieces = [piece for token in tried if (piece := tokenizer.decode([token]))]
    strings = [*fixed_strings(), *special_strings(sorted(added)), *piece_strings(pieces)]
    return strings + pieces if _mixes_merges(folder) else strings


def known_limits(folder: ModelFolder) -> tuple[Limit, ...]:
    """What llama.cpp is known to tokenize otherwise with a tokenizer of this family."""
    kind = model_type(folder.tokenizer)
    added = {token["content"] for token in added_tokens(folder.tokenizer)}
    ordinary = (CONTROL_LOOKING & folder.token_ids.keys()) - added
    named = text_limits([text for text in ordinary if text not in (folder.chat_template or "")])
    if kind != "BPE":
        return (*(wordpiece.LIMITS if kind == "WordPiece" else unigram.LIMITS), *named)
    return (*byte_level.limits(folder), *named) if byte_level.is_byte_level(folder.tokenizer) else named


def limits_note(folder: ModelFolder) -> dict[str, str]:
    """The limits for the file's provenance; nothing where there is none."""
    limits = known_limits(folder)
    return {"tokenizer_limits": "; ".join(limit.why for limit in limits)} if limits else {}


class _Proof:
    """One tokenizer against its form in a file."""

    def __init__(self, folder: ModelFolder, tokenizer: Tokenizer, vocabulary: LlamaVocabulary) -> None:
        self.folder, self.tokenizer, self.vocabulary = folder, tokenizer, vocabulary
        self.limits = known_limits(folder)
        self.lead = _lead(folder)
        self.n_strings, self.beyond = 0, Counter[str]()

    def run(self, strings: Sequence[str], *, skip: bool) -> None:
        """Compare the ids of `strings`; with `skip`, leave out and count those behind a known limit."""
        for text in strings:
            text = self.lead + text
            if self.vocabulary.unwritable(text):
                continue
            limit = next((limit for limit in self.limits if limit.concerns(text)), None)
            theirs = self.tokenizer.encode(text, add_special_tokens=False).ids
            ours = self.vocabulary.tokenize(text)
            if theirs == ours:
                alone = limit is None or self.vocabulary.llama_ids(self.vocabulary.normalized(text)) == theirs
                self.n_strings += alone
            elif limit is not None and skip:
                alone = False
            else:
                why = f" ({limit.why})" if limit else ""
                raise ModelError(
                    f"{self.folder.path}: llama.cpp tokenizes {_shortened(text)!r} otherwise than transformers{why}: "
                    f"{first_difference(self.tokenizer, ours, theirs)}; this tokenizer cannot be exported to GGUF"
                )
            if limit is not None and not alone:
                self.beyond[limit.why] += 1


def first_difference(tokenizer: Tokenizer, ours: Sequence[int], theirs: Sequence[int]) -> str:
    """Both lists of ids around the first place where they differ, and the tokens there."""
    equal = (a == b for a, b in zip(ours, theirs, strict=False))
    at = next((place for place, same in enumerate(equal) if not same), min(len(ours), len(theirs)))
    window = slice(max(0, at - SHOWN_TOKENS), at + SHOWN_TOKENS)
    shown = [[*ids[window]] for ids in (ours, theirs)]
    texts = [[tokenizer.id_to_token(token) for token in ids] for ids in shown]
    return f"from token {at} on {shown[0]} {texts[0]}, not {shown[1]} {texts[1]}"


def _verify_ends(folder: ModelFolder, ends: Ends, tokenizer: Tokenizer, vocabulary: LlamaVocabulary) -> None:
    """What both put around a text (nothing is between), and the tokens that end an answer."""
    theirs, ours = tokenizer.encode("", add_special_tokens=True).ids, vocabulary.tokenize("", add_special=True)
    if folder.chat_template is not None:
        theirs = theirs[:1] if ends.adds_begin else []
    if theirs != ours:
        raise ModelError(
            f"{folder.path}: around a text transformers puts {_named(tokenizer, theirs)}, llama.cpp "
            f"{_named(tokenizer, ours)}; this tokenizer cannot be exported to GGUF"
        )
    unknown = [token for token in ends.stops if token not in vocabulary.eos_ids]
    if unknown and model_type(folder.tokenizer) != "WordPiece":  # an encoder answers nothing
        raise ModelError(
            f"{folder.path}: the end tokens {_named(tokenizer, unknown)} do not fit a GGUF file, which names three; "
            "shorten eos_token_id in generation_config.json"
        )


def _mixes_merges(folder: ModelFolder) -> bool:
    """Whether llama.cpp ignores merges and the tokenizer does not, or the other way round: that shows only on a
    word that is a token, so every token has to be tried."""
    if model_type(folder.tokenizer) != "BPE" or not byte_level.is_byte_level(folder.tokenizer):
        return False
    return byte_level.pre_tokenizer(folder).ignore_merges != ignores_merges(folder.tokenizer)


def _lead(folder: ModelFolder) -> str:
    """What every compared string begins with: BOS where the file is right only behind a special token."""
    if model_type(folder.tokenizer) != "BPE" or byte_level.is_byte_level(folder.tokenizer):
        return ""
    return (folder.special_text("bos") or "") if space_prefix(folder) == "first" else ""


def _named(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    return [f"{token} {tokenizer.id_to_token(token)}" for token in ids]


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
