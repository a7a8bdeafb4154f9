"""Stage `baseline` of a classifier: what the exported folder is compared with.

- merged     the fine-tuned model in torch, before export: what the folder should reach
- classical  no neural network at all
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.accuracy import FINISHED, Answer, Evaluation, Scoring, score_answers
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import Example, read_examples, take
from edgeft.console import Log
from edgeft.parity.encoders import torch_logits
from edgeft.recipe import Recipe
from edgeft.stages._classical import FEATURES, classical_answers
from edgeft.stages._json import write_json, write_lines
from edgeft.stages._model import final_model
from edgeft.stages.bench import scoring_keys


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write baseline.json and predictions-FORM.jsonl: the final model in torch, and TF-IDF."""
    data, section = inputs["data"], recipe.bench
    if not section.baselines:
        write_json(out / "baseline.json", {"metrics": section.metrics, "forms": []})
        return {}
    test = take(read_examples(data.file("test.jsonl")), section.limit, recipe.seed)
    labels = json.loads(data.file("labels.json").read_bytes())
    log.say(f"baseline: {len(test)} texts in torch")
    started = time.perf_counter()
    found = torch_logits(final_model(inputs).path, [text_of(example) for example in test]).argmax(axis=1)
    merged = _scored(recipe, test, [labels[place] for place in found], started)
    started = time.perf_counter()
    method, texts = classical_answers(read_examples(data.file("train.jsonl")), test, recipe.seed)
    forms = []
    for form, label, note, evaluation in (
        ("merged", "fine-tuned, torch", "before export", merged),
        ("classical", method, FEATURES, _scored(recipe, test, texts, started)),
    ):
        name = f"predictions-{form}.jsonl"
        write_lines(out / name, evaluation.predictions())
        forms.append({"form": form, "label": label, "note": note, "predictions": name, **evaluation.to_json()})
    write_json(out / "baseline.json", {"metrics": section.metrics, "forms": forms})
    scores = ((form["form"], score) for form in forms for score in form["scores"])
    return {f"{form}_{score['metric']}": score["value"] for form, score in scores}


def _scored(recipe: Recipe, examples: Sequence[Example], texts: Sequence[str], started: float) -> Evaluation:
    answers = [Answer(text, FINISHED, 0, 0) for text in texts]
    return score_answers(examples, answers, Scoring(**scoring_keys(recipe.bench)), time.perf_counter() - started)
