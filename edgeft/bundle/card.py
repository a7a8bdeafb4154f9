"""The model card of a bundle, filled from what the run measured.

The head is the YAML that model hubs read (https://huggingface.co/docs/hub/model-cards). Numbers are the report's,
with their intervals; what was not measured is said, not left out.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgeft.bundle.contents import (
    Extras,
    base_licence,
    generation_defaults,
    is_classifier,
    measurements,
    shipped_entry,
)
from edgeft.bundle.run import Run
from edgeft.report.mistake_tables import SHOWS_ANSWERS
from edgeft.report.numbers import count, size
from edgeft.runs import entry_folder, kind_of

LIBRARIES = {"gguf": "gguf", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Form:
    """How what the card lies in is used: Markdown, in which NAME is the run's name, TASK and CALL as in CALLS.

    Where it does not hold the exported file: the `library` that loads it and what it is, in words.
    """

    use: str
    library: str | None = None
    words: str | None = None


BUNDLE = Form("""```python
from edgeft.runtime import load

with load("NAME.edgeft") as model:
    print(model.CALL)
```""")
CALLS = {"text-generation": 'chat([{"role": "user", "content": "..."}])', "text-classification": 'classify(["..."])'}
"""By the name model hubs have for the task."""


def model_card(run: Run, extras: Extras, form: Form = BUNDLE) -> str:
    """The card as Markdown, the run's own report behind it. A run without one gives a card that says so."""
    entry = shipped_entry(run, extras.file)
    bench = measurements(run, entry) or {}
    task = "text-classification" if is_classifier(run) else "text-generation"
    sections = [
        _head(run, extras, form.library or LIBRARIES.get(entry["format"], entry["format"]), task),
        f"# {run.name}",
        _what(run, entry, form),
        "## Use",
        form.use.replace("NAME", run.name).replace("TASK", task).replace("CALL", CALLS[task]),
        _measured_with(run),
        "## Accuracy and its limits",
        _bullets(scores(bench)),
        _bullets(limits(run, entry, bench, form)),
        "## Licence",
        _licence(run, extras),
        "## Energy",
        energy(bench),
    ]
    report = run.stages.get("report")
    if report and "report.md" in report.files:
        sections.append(_measured(report.file("report.md").read_text(encoding="utf-8")))
    return "\n\n".join(section for section in sections if section) + "\n"


def scores(bench: Mapping[str, Any]) -> Iterator[str]:
    """Every metric with its 95 % interval and the number of examples it is of."""
    for score in bench.get("accuracy", {}).get("scores", ()):
        low, high = score["ci95"]
        yield f"{score['metric']} {score['value']:.3f} [{low:.3f}, {high:.3f}] on {count(score['n'])} test examples"


def limits(run: Run, entry: Mapping[str, Any], bench: Mapping[str, Any], form: Form) -> Iterator[str]:
    """What the numbers do not say, one sentence each."""
    if not bench:
        yield "Its accuracy and speed were not measured."
    else:
        if form.words:
            yield f"All numbers are of {bench['file']}, which was made of it."
        elif bench["file"] not in (entry["file"], entry_folder(entry)):
            yield f"All numbers are of {bench['file']}, not of {entry['file']}, which is the file here."
        yield (
            "The examples are from where its training data came from; other uses, languages and ways of asking were "
            "not measured."
        )
    metrics = {score["metric"] for score in bench.get("accuracy", {}).get("scores", ())}
    if "out_of_scope_recall" not in metrics:
        yield "How it answers what it was not trained for was not measured; it may answer wrongly and sound sure."
    yield "Bias, safety and leaking of training data were not measured."
    for key, what in (("data.max_length", "trained on conversations of at most"), ("bench.n_ctx", "measured within")):
        if run.values.get(key):
            yield f"It was {what} {count(run.values[key])} tokens."
    if run.passed is False:
        yield "It missed budgets of its recipe; see Verdict."


def energy(bench: Mapping[str, Any]) -> str:
    """Energy of a token, or why it was not counted."""
    counted = (bench.get("latency") or {}).get("energy") or {}
    joules = (bench.get("metrics") or {}).get("energy_j_per_token")
    if joules:
        return f"{joules:.3g} J for a token, prompts included ({', '.join(counted.get('sources', []))})."
    return f"Not counted: {counted.get('absent') or 'it was not measured'}."


def _head(run: Run, extras: Extras, library: str, task: str) -> str:
    """YAML in which every value is a JSON string, which YAML reads as it is."""
    base = str((run.json(run.model.stage, "provenance.json") or {}).get("base", "unknown"))
    rows = {
        "license": (extras.license or base_licence(run) or "other").lower(),
        "base_model": base.rstrip("/").rsplit("/", 1)[-1] if base.startswith(("/", ".", "$")) else base,
        "library_name": library,
        "pipeline_tag": task,
    }
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in rows.items()), "tags: [edgeft]", "---"])


def _measured(report: str) -> str:
    """The report behind its title, without what it shows of the test set: that is not for whoever gets the model."""
    parts = re.split(r"(?m)^(?=## )", report.partition("\n\n")[2])
    return "".join(part for part in parts if part.partition("\n")[0].removeprefix("## ") not in SHOWS_ANSWERS).rstrip()


def _what(run: Run, entry: Mapping[str, Any], form: Form) -> str:
    config = run.json(run.model.stage, "config.json") or {}
    what = form.words or f"{entry['file']} ({kind_of(entry)}, {size(entry['bytes'])})"
    return f"A {config.get('model_type', 'transformer')} model fine-tuned with edgeft for one task: {what}."


def _measured_with(run: Run) -> str:
    defaults = generation_defaults(run)
    system = defaults.pop("system", None)
    if not defaults:
        return ""
    said = f"Measured with: {', '.join(f'{key} {value}' for key, value in sorted(defaults.items()))}."
    if not system:
        return said
    return "\n".join([said, "", "Every training example began with this system message:", "", *_quoted(system)])


def _quoted(text: str) -> list[str]:
    """An indented code block: text from data must stay text."""
    return [f"    {line}" for line in text.splitlines()]


def _licence(run: Run, extras: Extras) -> str:
    given = extras.license or base_licence(run)
    texts = "; texts in licences/" if extras.license_files or base_licence(run) else ""
    if given is None:
        return "Not stated. The licences of the base model and of the training data hold for this model too."
    return f"{given}{texts}. The licences of the base model and of the training data hold for this model too."


def _bullets(sentences: Iterator[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
