"""Stage `baseline`: what the fine-tuned file is compared with, so that nobody is fooled by a number alone.

- merged          the fine-tuned model in torch, before export: what the file should reach
- base_zero_shot  the base model, asked as the fine-tuned one is
- base_few_shot   the base model with some training examples before the question
- classical       no language model at all
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from edgeft.artifact import Artifact
from edgeft.bench.accuracy import Answer, Evaluation, Scoring, finished_answer, refused_answer, score_answers
from edgeft.bench.examples import Example, read_examples, take
from edgeft.console import Log
from edgeft.conversation.renderer import renderer_of
from edgeft.recipe import Recipe
from edgeft.stages._classical import FEATURES, classical_answers
from edgeft.stages._json import write_json, write_lines
from edgeft.stages._model import final_model
from edgeft.stages.bench import scoring_keys
from edgeft.training.generation import find_stop_ids, generate_greedily
from edgeft.training.models import load_model, load_tokenizer, resolve_base


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write baseline.json (scores and intervals of every form) and predictions-FORM.jsonl.

    Reads train.jsonl, test.jsonl and the tokenizer of `data` and the model of `merge`; the base model comes
    from the recipe. `merged` and `classical` answer the examples the file will, the base model at most
    `bench.baseline_limit` of them. Where `bench.baselines` is off there are no forms. Raises ModelError when a model
    cannot be loaded.
    """
    section = recipe.bench
    if not section.baselines:
        write_json(out / "baseline.json", {"metrics": section.metrics, "forms": []})
        return {}
    test = take(read_examples(inputs["data"].file("test.jsonl")), section.limit, recipe.seed)
    few = take(test, section.baseline_limit, recipe.seed)
    train = read_examples(inputs["data"].file("train.jsonl"))
    tokenizer = load_tokenizer(inputs["data"].path / "tokenizer")
    forms = []

    def keep(form: str, label: str, note: str, evaluation: Evaluation) -> None:
        name = f"predictions-{form}.jsonl"
        write_lines(out / name, evaluation.predictions())
        forms.append({"form": form, "label": label, "note": note, "predictions": name, **evaluation.to_json()})

    asker = _Asker(load_model(final_model(inputs).path), tokenizer, recipe, log)
    keep("merged", "fine-tuned, torch", "before export", asker.ask("merged model", test))
    del asker  # one model in memory at a time
    asker = _Asker(load_model(resolve_base(recipe)), tokenizer, recipe, log)
    one_line = all("\n" not in example.answer.strip() for example in test)
    note = "only the first line of an answer counts" if one_line else ""
    keep("base_zero_shot", "base, zero-shot", note, asker.ask("zero-shot", few, one_line=one_line))
    if section.few_shot:
        shots = random.Random(recipe.seed).sample(train, min(section.few_shot, len(train)))
        evaluation = asker.ask("few-shot", few, shots, one_line=one_line)
        keep("base_few_shot", f"base, {len(shots)}-shot", note, evaluation)
    keep("classical", *_classical(recipe, train, test, log))

    write_json(out / "baseline.json", {"metrics": section.metrics, "forms": forms})
    return {f"{form['form']}_{score['metric']}": score["value"] for form in forms for score in form["scores"]}


class _Asker:
    """A torch model that answers examples as the exported file will: same template, same limits."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, log: Log) -> None:
        self.model, self.tokenizer, self.log = model, tokenizer, log
        self.max_new_tokens, self.scoring = recipe.bench.max_new_tokens, Scoring(**scoring_keys(recipe.bench))
        self.n_ctx = min(recipe.bench.n_ctx, getattr(model.config, "max_position_embeddings", recipe.bench.n_ctx))
        self.stop_ids = find_stop_ids(tokenizer, model)

    def ask(
        self,
        label: str,
        examples: Sequence[Example],
        shots: Sequence[Example] = (),
        *,
        one_line: bool = False,
    ) -> Evaluation:
        """Answers to `examples`, scored; `shots` stand before each question, as many as fit.

        With `one_line` only the first line of an answer counts: a base model does not know when to stop, and
        a comparison that punishes it for that says nothing about the task.
        """
        started = time.perf_counter()
        prompts = [self._prompt(example, shots) for example in examples]
        limits = [min(self.max_new_tokens, self.n_ctx - len(prompt)) for prompt in prompts]
        fitting = [index for index, limit in enumerate(limits) if limit >= 1]
        with self.log.progress(label, len(fitting), "examples") as progress:
            outputs = generate_greedily(
                self.model,
                [prompts[i] for i in fitting],
                stop_ids=self.stop_ids,
                max_new_tokens=[limits[i] for i in fitting],
                report=progress.update,
            )
        answers = [refused_answer(len(prompt)) for prompt in prompts]
        for index, ids in zip(fitting, outputs, strict=True):
            answers[index] = finished_answer(ids, len(prompts[index]), limits[index], self._text(one_line))
        return score_answers(examples, answers, self.scoring, time.perf_counter() - started)

    def _prompt(self, example: Example, shots: Sequence[Example]) -> list[int]:
        """Token ids of the question with as many of the shots before it as leave room for the answer."""
        for count in range(len(shots), -1, -1):
            ids = self._tokenize(_with_shots(example, shots[:count]), example.tools)
            if count == 0 or len(ids) + self.max_new_tokens <= self.n_ctx:
                break
        return ids

    def _tokenize(self, messages: list[dict[str, Any]], tools: Sequence[Any] | None) -> list[int]:
        text = renderer_of(self.tokenizer).render(messages, tools, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def _text(self, one_line: bool) -> Any:
        # Without clean-up of spaces before punctuation, which a device does not do either.
        plain: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}

        def detokenize(ids: Sequence[int]) -> str:
            text = str(self.tokenizer.decode(list(ids), **plain))
            return text.strip().split("\n")[0] if one_line else text

        return detokenize


def _with_shots(example: Example, shots: Sequence[Example]) -> list[dict[str, Any]]:
    """The conversation with the shots as earlier turns, behind the system message if there is one."""
    messages = list(example.prompt)
    system = [messages.pop(0)] if messages and messages[0]["role"] == "system" else []
    turns = [
        message
        for shot in shots
        for message in (*shot.prompt, {"role": "assistant", "content": shot.answer})
        if message["role"] != "system"
    ]
    return system + turns + messages


def _classical(
    recipe: Recipe, train: Sequence[Example], test: Sequence[Example], log: Log
) -> tuple[str, str, Evaluation]:
    log.say("baseline: TF-IDF")
    started = time.perf_counter()
    method, texts = classical_answers(train, test, recipe.seed)
    answers = [Answer(text, "stop", 0, 0) for text in texts]
    scoring = Scoring(**scoring_keys(recipe.bench))
    return method, FEATURES, score_answers(test, answers, scoring, time.perf_counter() - started)
