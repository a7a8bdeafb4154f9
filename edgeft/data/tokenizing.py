"""The tokenizer of a base model, with the chat template the recipe asks for. No weights are read."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeft.data.chatml import CHATML
from edgeft.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from edgeft.recipe import Recipe

TEMPLATES = {
    "chatml": CHATML,
    "plain": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ message['content'] + '\\n' }}{% endif %}"
        "{% endfor %}"
    ),
}


def recipe_tokenizer(recipe: "Recipe") -> Any:
    """The tokenizer of the recipe's base, as the data stage uses it. Raises ModelError."""
    tokenizer = load_tokenizer(recipe.base_folder())
    apply_template(tokenizer, recipe.model.chat_template, recipe.folder)
    return tokenizer


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's tokenizer. Raises ModelError when it cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {error}") from error


def apply_template(tokenizer: "PreTrainedTokenizerBase", chat_template: str | None, recipe_folder: Path) -> None:
    """Give `tokenizer` the recipe's chat template: its own (None), a named one, or a Jinja file.

    Raises ModelError when there is none, or a named one needs tokens the tokenizer does not have.
    """
    if chat_template is None:
        if tokenizer.chat_template is None:
            raise ModelError(
                "the base's tokenizer has no chat template; set model.chat_template to "
                f"{', '.join(sorted(TEMPLATES))} or to a .jinja file"
            )
        return
    if chat_template in TEMPLATES:
        missing = [t for t in ("<|im_start|>", "<|im_end|>") if t not in tokenizer.get_vocab()]
        if chat_template == "chatml" and missing:
            raise ModelError(
                f"model.chat_template: chatml needs the tokens {', '.join(missing)}, which this tokenizer "
                "does not have; use plain"
            )
        tokenizer.chat_template = TEMPLATES[chat_template]
        return
    path = recipe_folder / chat_template
    if not path.is_file():
        raise ModelError(f"model.chat_template: no file {path}; named templates are {', '.join(sorted(TEMPLATES))}")
    tokenizer.chat_template = path.read_text("utf-8")


def word_pieces(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The lower-case words and pieces of words of at least three letters that are one token, sorted."""
    pieces = {str(tokenizer.decode([token])).strip() for token in tokenizer.get_vocab().values()}
    return sorted(p for p in pieces if len(p) >= 3 and p.isalpha() and p.islower())
