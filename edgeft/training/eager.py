"""A model folder in torch's eager mode, answering as `edgeft.runtime.Model` does: the baseline of benchmarks.

Shapes: T tokens of a sequence.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgeft.conversation.renderer import renderer_of
from edgeft.errors import ModelError, RuntimeFault, UsageError


class EagerModel:
    """A causal language model with its tokenizer, in the type its weights are stored in; greedy only."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int | None, device: str) -> None:
        """Raises ModelError when the folder cannot be loaded, UsageError for a device this torch does not have."""
        if n_threads is not None:
            torch.set_num_threads(n_threads)
        self.path, self.n_threads = path, torch.get_num_threads()
        self.device = _device(device)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
            model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto", local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path}: transformers cannot load it: {error}") from error
        self.model = model.to(self.device).eval()
        self.n_ctx = min(n_ctx, getattr(model.config, "max_position_embeddings", n_ctx))
        self.n_vocab = int(model.config.vocab_size)
        self.eos_ids = _end_tokens(model, self.tokenizer)

    def render(self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] | None = None) -> str:
        """The text of a chat, by the tokenizer's template. Raises ModelError when it has none."""
        if not self.tokenizer.chat_template:
            raise ModelError(f"{self.path}: the folder has no chat template; it cannot answer messages")
        return renderer_of(self.tokenizer).render(messages, tools, add_generation_prompt=True)

    def tokenize(self, text: str) -> list[int]:
        """Ids of `text`; no special tokens are added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def detokenize(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self, prompt_ids: Sequence[int], *, max_new_tokens: int, ignore_eos: bool = False) -> Iterator[int]:
        """Yield the greedy answer token by token, with a cache of keys and values.

        Raises RuntimeFault when the prompt is empty or does not fit.
        """
        if not 0 < len(prompt_ids) <= self.n_ctx:
            raise RuntimeFault(f"{len(prompt_ids)} tokens do not fit the context of {self.n_ctx}; shorten them")
        ids = torch.tensor([list(prompt_ids)], device=self.device)  # (1, T)
        cache = None
        for _ in range(min(max_new_tokens, self.n_ctx - len(prompt_ids) + 1)):
            with torch.inference_mode():
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
            token = int(ids)
            if token in self.eos_ids and not ignore_eos:
                return
            yield token

    def generate(self, prompt_ids: Sequence[int], *, max_new_tokens: int) -> list[int]:
        """All tokens of `stream`."""
        return list(self.stream(prompt_ids, max_new_tokens=max_new_tokens))

    def work(self) -> dict[str, int]:
        """Fields of `edgeft.bench.roofline.Work`: embeddings are looked up, the head runs on one prompt token."""
        table, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        total = {id(weight): weight for weight in self.model.parameters()}
        once = {id(table): table, id(head): head}
        read = [weight for key, weight in total.items() if head is table or key != id(table)]
        matrices = [weight for key, weight in total.items() if key not in once and weight.dim() > 1]
        config = self.model.config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        kv_heads = getattr(config, "num_key_value_heads", heads)
        return {
            "weight_bytes": sum(weight.numel() * weight.element_size() for weight in read),
            "kv_bytes_per_position": 2 * config.num_hidden_layers * kv_heads * width * table.element_size(),
            "prompt_multiply_adds": sum(weight.numel() for weight in matrices),
        }

    def close(self) -> None:
        """Free the memory. The model cannot be used afterwards."""
        del self.model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"device {name}: this torch does not have it ({first}); use cpu") from None
    return device


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """What ends an answer: the generation configuration's tokens and the tokenizer's."""
    named = model.generation_config.eos_token_id
    ends = named if isinstance(named, list) else [named]
    return frozenset(token for token in [*ends, tokenizer.eos_token_id] if token is not None)
