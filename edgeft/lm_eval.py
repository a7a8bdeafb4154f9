"""A runtime model as lm-evaluation-harness sees one: `pip install "edgeft[lm-eval]"`.

    from lm_eval import simple_evaluate
    with edgeft.runtime.load("model-Q4_K_M.gguf") as model:
        results = simple_evaluate(RuntimeLM(model), tasks=["arc_easy"], limit=100)

Nothing else in edgeft imports this module. The harness imports torch and fetches its tasks' data sets itself.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

if TYPE_CHECKING:
    from edgeft.runtime import Model

MAX_NEW_TOKENS = 256  # the harness's own default where a task names no limit


class RuntimeLM(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """Scores and answers of `model`; requests are lists of lm_eval's Instance, whose `args` each method names.

    What does not fit the context loses its oldest tokens, as in the harness's own backends.
    """

    def __init__(self, model: "Model") -> None:
        super().__init__()
        self.model = model
        bos = model.metadata.get("tokenizer.ggml.bos_token_id")
        adds = str(model.metadata.get("tokenizer.ggml.add_bos_token", "")).lower() == "true"
        self._begin = [int(bos)] if bos is not None and adds else []

    @property
    def eot_token_id(self) -> int:
        """A token that ends an answer."""
        return min(self.model.eos_ids)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: the token that begins texts, else one that ends them."""
        return self._begin[0] if self._begin else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness caches requests by."""
        return "edgeft-runtime"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of `string`, with the token that begins texts where the file asks for it."""
        begin = self._begin if add_special_tokens is not False else []
        ids = self.model.tokenize(string)
        return ids if ids[: len(begin)] == begin else [*begin, *ids]

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a chat, by the template in the file."""
        return self.model.render(list(chat_history), add_generation_prompt=add_generation_prompt)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, args (text,); each token is given as much context as fits."""
        found = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.n_ctx,
                context_len=1,
            )
            found.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers up to the first stop text, args (prompt, {until, max_gen_toks, do_sample, temperature})."""
        return [self._generate(*request.args) for request in requests]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """Of each (texts, context ids, continuation ids)."""
        return [self._score(context, continuation) for _, context, continuation in requests]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability of the continuation, and whether it is what greedy decoding gives."""
        ids = [*context, *continuation][-(self.model.n_ctx + 1) : -1]
        wanted = list(continuation)[-len(ids) :]
        logits = self.model.score(ids)[-len(wanted) :].astype(np.float64)  # (continuation, V)
        totals = np.logaddexp.reduce(logits, axis=1)
        log_probs = logits[np.arange(len(wanted)), wanted] - totals
        return float(log_probs.sum()), bool((logits.argmax(axis=1) == wanted).all())

    def _generate(self, prompt: str, options: Mapping[str, Any]) -> str:
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        limit = int(options.get("max_gen_toks", MAX_NEW_TOKENS))
        ids = self.tok_encode(prompt)[-max(1, self.model.n_ctx - limit) :]
        temperature = float(options.get("temperature", 1.0)) if options.get("do_sample") else 0.0
        answer: list[int] = []
        for token in self.model.stream(ids, max_new_tokens=limit, temperature=temperature):
            answer.append(token)
            text = self.model.detokenize(answer)
            if places := [place for stop in stops if stop and (place := text.find(stop)) >= 0]:
                return text[: min(places)]
        return self.model.detokenize(answer)
