"""A model folder, with or without an adapter on it, in torch."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from edgeft.conversation.renderer import renderer_of
from edgeft.errors import ModelError
from edgeft.parity.forms import Form, FormSource, Prompt, Traits
from edgeft.training.generation import find_stop_ids, generate_greedily
from edgeft.training.models import load_model, load_tokenizer


def folder_form(name: str, folder: Path) -> FormSource:
    """The model folder `folder` with its own tokenizer, computed in float32."""
    return FormSource(name, lambda _: _open(folder, folder, None))


def adapter_form(name: str, base: Path, adapter: Path, tokenizer: Path) -> FormSource:
    """The peft adapter on the weights of `base`, in float32, unmerged.

    For QLoRA too: merging is about the base's own weights, not the 4-bit copy training saw.
    """
    return FormSource(name, lambda _: _open(base, tokenizer, adapter))


@contextlib.contextmanager
def _open(folder: Path, tokenizer: Path, adapter: Path | None) -> Iterator[Form]:
    model: Any = load_model(folder)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    yield TorchForm(model.eval(), load_tokenizer(tokenizer))


def _with_adapter(model: Any, adapter: Path) -> Any:
    if not (adapter / "adapter_config.json").is_file():
        raise ModelError(f"{adapter}: no adapter_config.json; is this the folder of a peft adapter?")
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"{adapter}: peft cannot load it on this base: {error}") from error


class TorchForm:
    """See `Form`."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """Raises ModelError when the tokenizer has no chat template."""
        if tokenizer.chat_template is None:
            raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no chat template to make prompts with")
        self.model, self.tokenizer = model, tokenizer
        self.traits = Traits(
            family="f16",
            n_vocab=model.config.vocab_size,
            n_ctx=model.config.max_position_embeddings,
            bos_id=tokenizer.bos_token_id,
            eos_id=tokenizer.eos_token_id,
            stop_ids=find_stop_ids(tokenizer, model),
            special_ids=frozenset(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder),
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """See `Form`."""
        text = renderer_of(self.tokenizer).render(prompt.messages, prompt.tools, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def answers(self, prompts: Sequence[Sequence[int]], n_gen: int) -> list[list[int]]:
        """See `Form`."""
        return generate_greedily(self.model, prompts, stop_ids=self.traits.stop_ids, max_new_tokens=n_gen)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], n_last: int) -> np.ndarray:
        """See `Form`."""
        row = torch.tensor([list(ids)], device=self.model.device)
        logits: np.ndarray = self.model(row, logits_to_keep=n_last).logits[0].float().cpu().numpy()
        return logits
