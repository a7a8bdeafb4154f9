"""The tokens with a role: what begins and ends a text or an answer, what is missing, masked or filled in."""

from dataclasses import dataclass
from typing import Any

from edgeft.errors import ModelError
from edgeft.export.folder import ModelFolder
from edgeft.export.gguf.architectures import Metadata
from edgeft.export.gguf.tokenizers.base import added_tokens, model_type, unknown_id
from edgeft.runtime.template import ChatTemplate

PROBE = "edgeft"
TURN = ({"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE})
STOP_KEYS = ("eos", "eot", "eom")
"""llama.cpp's names for the tokens that end an answer, in the order they are given out."""

KNOWN_STOPS = {
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
}  # fmt: skip
"""Tokens that end an answer in llama.cpp by their text alone (`src/llama-vocab.cpp`), so that they need no key."""

FILL_IN_MIDDLE = {
    "fim_pre": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"),
    "fim_suf": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"),
    "fim_mid": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Texts by which llama.cpp finds the tokens of filling in the middle, per key."""


@dataclass(frozen=True)
class Ends:
    """How a text begins and what ends an answer."""

    begin: int | None
    """The token in front of a text: the tokenizer's BOS, or CLS of an encoder."""
    adds_begin: bool
    """Whether llama.cpp puts it there by itself."""
    adds_end: bool
    """Whether llama.cpp puts the first of `stops` behind a text."""
    stops: list[int]
    """Ids that end an answer, the tokenizer's EOS (SEP of an encoder) first."""


def ends_of(folder: ModelFolder, template: ChatTemplate | None) -> Ends:
    """The ends of a model's texts, by its tokenizer, configs and chat template.

    For a model that chats, a text is a rendered template: what the template does not begin with, llama.cpp must
    not add, and behind a question nothing may end it.
    """
    ids = folder.token_ids
    bos, eos = folder.special_id("bos"), folder.special_id("eos")
    begin = folder.special_id("cls") if bos is None else bos
    turn = _rendered_turn(template)
    declared = folder.generation_config.get("eos_token_id", folder.config.get("eos_token_id"))
    others = declared if isinstance(declared, list) else [declared]
    found = [folder.special_id("sep") if eos is None else eos, _turn_end(folder, turn), *others]
    stops = list(dict.fromkeys(token for token in found if token is not None))
    first, last = _post_processor_ends(folder.tokenizer.get("post_processor"))
    adds_begin = first is not None and ids.get(first) == begin
    if template is not None:
        return Ends(begin, adds_begin and (turn is None or turn.startswith(str(first))), False, stops)
    return Ends(begin, adds_begin, last is not None and ids.get(last) in stops[:1], stops)


def special_metadata(folder: ModelFolder) -> Metadata:
    """The `*_token_id` and `add_*_token` keys. Raises ModelError when nothing ends an answer of a text model."""
    ends = ends_of(folder, template_of(folder))
    if not ends.stops and model_type(folder.tokenizer) != "WordPiece":
        raise ModelError(
            f"{folder.path}: no token ends an answer; set eos_token in tokenizer_config.json or "
            "eos_token_id in generation_config.json"
        )
    named = {
        "bos": ends.begin,
        **dict(zip(STOP_KEYS, _most_needed(folder, ends.stops), strict=False)),
        "unknown": unknown_id(folder),
        "seperator": folder.special_id("sep"),
        "padding": folder.special_id("pad"),
        "cls": folder.special_id("cls"),
        "mask": folder.special_id("mask"),
        **_fill_in_middle(folder.tokenizer),
    }
    keys: Metadata = {f"tokenizer.ggml.{name}_token_id": token for name, token in named.items() if token is not None}
    keys["tokenizer.ggml.add_bos_token"] = ends.adds_begin
    keys["tokenizer.ggml.add_eos_token"] = ends.adds_end
    if (folder.tokenizer.get("post_processor") or {}).get("type") == "RobertaProcessing":
        keys["tokenizer.ggml.add_sep_token"] = True
    return keys


def template_of(folder: ModelFolder) -> ChatTemplate | None:
    """The folder's chat template with the variables transformers gives it: every named special token."""
    if folder.chat_template is None:
        return None
    names = [name.removesuffix("_token") for name in folder.tokenizer_config if name.endswith("_token")]
    texts = {f"{name}_token": folder.special_text(name) for name in names}
    return ChatTemplate(folder.chat_template, {name: text for name, text in texts.items() if isinstance(text, str)})


def _rendered_turn(template: ChatTemplate | None) -> str | None:
    """A question and its answer; None where there is no template or it does not take them."""
    if template is None:
        return None
    try:
        return template.render(TURN, tools=None, add_generation_prompt=False)
    except ModelError:
        return None


def _turn_end(folder: ModelFolder, turn: str | None) -> int | None:
    """The first special token behind the assistant's message."""
    _, found, behind = (turn or "").rpartition(PROBE)
    added = {token["content"]: token["id"] for token in added_tokens(folder.tokenizer)}
    places = [(behind.index(text), -len(text), token) for text, token in added.items() if text in behind]
    return min(places)[2] if found and places else None


def _post_processor_ends(processor: dict[str, Any] | None) -> tuple[str | None, str | None]:
    """The special tokens that a post-processor puts before and behind a text."""
    if processor is None:
        return None, None
    if processor["type"] == "Sequence":
        ends = [_post_processor_ends(part) for part in processor["processors"]]
        return next((a for a, _ in ends if a), None), next((b for _, b in ends if b), None)
    if processor["type"] in ("RobertaProcessing", "BertProcessing"):
        return processor["cls"][0], processor["sep"][0]
    if processor["type"] != "TemplateProcessing":
        return None, None
    names = [item.get("SpecialToken", {}).get("id") for item in processor["single"]]
    return names[0], names[-1]


def _most_needed(folder: ModelFolder, stops: list[int]) -> list[int]:
    """EOS, then, where the keys do not suffice, those llama.cpp would not know without."""
    if len(stops) <= len(STOP_KEYS):
        return stops
    texts = {token: text for text, token in folder.token_ids.items()}
    return [stops[0], *sorted(stops[1:], key=lambda token: texts.get(token) in KNOWN_STOPS)]


def _fill_in_middle(tokenizer: dict[str, Any]) -> dict[str, int]:
    added = {token["content"]: token["id"] for token in added_tokens(tokenizer)}
    found = {key: [added[text] for text in texts if text in added] for key, texts in FILL_IN_MIDDLE.items()}
    return {key: ids[0] for key, ids in found.items() if ids}
