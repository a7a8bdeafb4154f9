"""What a reader must know before any number: the model loses to something simpler, or the test is no test."""

from collections.abc import Iterator, Mapping
from typing import Any

from edgeft.bench.paired import SIGNIFICANT, pair_accuracies

MORE_TRAINING = "train longer (train.num_train_epochs, or hyperparameters: auto), give more examples or a larger base"
FOR_LABELS = (
    "for short labels an encoder is the better thing: train.objective: classification with an encoder as model.base, "
    "as in recipes/banking77-minilm.yaml"
)


def warnings(
    data: Mapping[str, Any] | None, bench: Mapping[str, Any] | None, baseline: Mapping[str, Any] | None
) -> Iterator[str]:
    """Sentences for the top of the report, from summary.json, bench.json and baseline.json."""
    leaked = ((data or {}).get("test") or {}).get("leaked", 0)
    if leaked:
        yield (
            f"The test is no test: {leaked} of its {data['test']['examples']} examples are learned from as well "  # type: ignore[index]
            "(data.allow: [E503]). No number below says how new questions are answered"
        )
    classical = next((form for form in (baseline or {"forms": []})["forms"] if form["form"] == "classical"), None)
    if bench and classical and (words := _loses(bench["accuracy"], classical)):
        advice = MORE_TRAINING.capitalize()
        yield f"{words}. {advice}; {FOR_LABELS}" if _offers_encoder(baseline) else f"{words}. {advice}"


def _offers_encoder(baseline: Mapping[str, Any] | None) -> bool:
    """Whether a decoder was trained for answers that are labels."""
    forms = {form["form"]: form["label"] for form in (baseline or {"forms": []})["forms"]}
    return "base_zero_shot" in forms and "linear" in forms["classical"].lower()


def _loses(accuracy: Mapping[str, Any], classical: Mapping[str, Any]) -> str:
    """In words, that the file is worse than the classical baseline by more than chance; empty when it is not."""
    theirs = {score["metric"]: score for score in classical["scores"]}
    ours = next((score for score in accuracy["scores"] if score["metric"] in theirs), None)
    if ours is None:
        return ""
    other = theirs[ours["metric"]]
    said = (
        f"{classical['label']} beats the fine-tuned file: {ours['metric']} {other['value']:.3f} "
        f"against {ours['value']:.3f}"
    )
    for row in pair_accuracies(classical, accuracy):
        if row.metric == ours["metric"]:
            low, high = row.ci95
            on = f" (a difference of {row.difference:.3f} [{low:.3f}, {high:.3f}] on the same {row.n} examples)"
            return said + on if row.p < SIGNIFICANT and row.difference > 0 else ""
    return said if other["ci95"][0] > ours["ci95"][1] else ""  # over other examples: the intervals lie apart
