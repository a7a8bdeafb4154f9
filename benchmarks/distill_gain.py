"""What a student gains from its teacher: distilled against the same student trained on labels alone, several seeds.

    python benchmarks/distill_gain.py [--recipe recipes/home-assistant/distill.yaml] [--seeds 1 2 3]

The recipe's teacher is trained once (its stages up to `merge`). For each seed the recipe's student is distilled twice
from the same start, over the same examples in the same order, with the same learning rate: as the recipe says, and
with kd_ratio 0, which leaves the cross-entropy with the labels. Where the recipe has questions without answers, only
the teacher can say anything of them: the second learns from what is labelled, in as many epochs more that it takes as
many steps. `--labels-learning-rate` gives it a rate of its own. All answer the whole test split greedily, in torch.
The margin is the mean over seeds of the difference of the two scores; its standard error is that of this mean, and
includes what the seed changes, not which examples are in the test split.

Beside it, for the recipe's trained teacher and the first distilled student, before and after its training: how far
the loss over cached tokens is from KL(teacher ‖ student) over the whole vocabulary, for as many tokens at every
position, and for as many as leave a given mass outside.
Everything made is kept in the work folder, so that an interrupted measurement goes on.
"""

import argparse
import dataclasses
import hashlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeft.artifact import Artifact
from edgeft.bench.examples import read_examples
from edgeft.bench.host import describe_host
from edgeft.bench.metrics import score_texts
from edgeft.console import Log, terminal_log
from edgeft.data.rendering import encode_prompt
from edgeft.pipeline import run
from edgeft.recipe import Recipe
from edgeft.recipe_reader import read_recipe
from edgeft.stages import distill
from edgeft.store import Store
from edgeft.torch_dtype import settled
from edgeft.training.attention import use_packed_attention
from edgeft.training.batches import TokenSet
from edgeft.training.cache_format import MOST, TAILS, Layout, Top, divergences, encode
from edgeft.training.distill_losses import Objective, Teacher, loss_and_logit_gradient
from edgeft.training.generation import find_stop_ids, generate_greedily
from edgeft.training.models import load_model, load_tokenizer
from edgeft.training.student import Shape, make_student
from edgeft.training.teacher_cache import top_targets

HERE = Path(__file__).resolve().parent
ARMS = ("distilled", "labels")
PRECISIONS = ("uint8", "float16")
FIXED = (4, 16, 64, 128)
COMPARED_TOKENS = 32768


def answer_scores(recipe: Recipe, model_folder: Path, data: Artifact) -> dict[str, float]:
    """Every metric of the recipe on the test split."""
    examples = read_examples(data.file("test.jsonl"))
    tokenizer: Any = load_tokenizer(data.path / "tokenizer")
    model = load_model(model_folder)
    prompts = [encode_prompt(tokenizer, list(e.prompt), list(e.tools) if e.tools else None) for e in examples]
    answers = generate_greedily(
        model, prompts, stop_ids=find_stop_ids(tokenizer, model), max_new_tokens=recipe.bench.max_new_tokens
    )
    texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in answers]
    scores = score_texts(recipe.bench.metrics, texts, [example.answer for example in examples])
    return {score.metric: score.value for score in scores}


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, made once."""
    if not path.exists():
        path.write_text(json.dumps(make()))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def labelled_only(inputs: dict[str, Artifact]) -> tuple[dict[str, Artifact], float]:
    """The inputs without questions that have no answer, and how many times as many examples there were with them."""
    data = inputs["data"]
    summary = json.loads((data.path / "summary.json").read_bytes())
    labelled = summary["train"]["examples"] + summary["train"].get("variants", 0)
    times = 1 + summary.get("unlabelled", {}).get("examples", 0) / labelled
    files = {name: file for name, file in data.files.items() if name != "unlabelled.jsonl"}
    return {**inputs, "data": dataclasses.replace(data, files=files)}, times


def train_student(
    recipe: Recipe, arm: str, seed: int, inputs: dict[str, Artifact], out: Path, labels_rate: float | None, log: Log
) -> dict[str, Any]:
    """One student, trained and scored."""
    assert recipe.distill is not None
    section = recipe.distill
    if arm == "labels":
        inputs, times = labelled_only(inputs)
        changed = {
            "kd_ratio": 0.0,
            "learning_rate": labels_rate or section.learning_rate,
            "num_train_epochs": times * section.num_train_epochs,
        }
        section = section.model_copy(update=changed)
    out.mkdir(parents=True, exist_ok=True)
    metrics = distill.run(recipe.model_copy(update={"seed": seed, "distill": section}), inputs, out, log)
    scores = answer_scores(recipe, out, inputs["data"])
    log.say(f"{arm}, seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    return {"arm": arm, "seed": seed, "scores": scores, "stage": metrics}


@torch.no_grad()
def loss_by_layout(teacher: Any, student: Any, tokens: TokenSet, vocabulary: int) -> list[dict[str, Any]]:
    """For each layout the relative difference of its loss to the whole KL(teacher ‖ student)."""
    for model in (teacher, student):
        use_packed_attention(model)
    sides = [Teacher(model, vocabulary) for model in (teacher, student)]
    shapes = [(k, 0.0) for k in FIXED] + [(max(MOST), tail) for tail in TAILS]
    layouts = [Layout(most, precision, vocabulary, tail) for most, tail in shapes for precision in PRECISIONS]  # type: ignore[arg-type]
    whole, at, n_positions = 0.0, 0, 0
    sums, kls, n_tokens, sizes = (np.zeros(len(layouts)) for _ in range(4))
    while at < len(tokens) and tokens.offsets[at] < COMPARED_TOKENS:
        batch = tokens.pack(np.arange(at, min(at + 32, len(tokens))))
        at += 32
        n_positions += batch.loss_count
        log_p, log_q = (side.targets(batch, 1.0).outcomes(slice(None))[1] for side in sides)
        whole += float((log_p.exp() * (log_p - log_q)).sum())
        for number, layout in enumerate(layouts):
            top = Top.of(log_p.clone(), layout.most)
            records = encode(top, layout)
            outcomes = top_targets(records).outcomes(slice(None))
            sums[number] += float(loss_and_logit_gradient(Objective(), log_q, batch.labels, *outcomes)[0])
            kls[number] += float(divergences(top, records, layout).sum())
            n_tokens[number] += len(records.ids)
            sizes[number] += layout.n_bytes(len(records.heads), len(records.ids))
    return [
        {
            "most": layout.most,
            "tail": layout.tail,
            "values": layout.values,
            "mean_k": n / n_positions,
            "bytes_per_token": size / n_positions,
            "kl_whole_to_cached": kl / n_positions,
            "loss": total / n_positions,
            "whole": whole / n_positions,
            "difference": abs(total / whole - 1),
        }
        for layout, total, kl, n, size in zip(layouts, sums, kls, n_tokens, sizes, strict=True)
    ]


def cache_losses(recipe: Recipe, inputs: dict[str, Artifact], student: Path) -> dict[str, Any]:
    """`loss_by_layout` of the student before and after its training."""
    assert recipe.distill is not None
    assert recipe.distill.student is not None
    data, folder = inputs["data"], inputs["merge"].path
    tokens = TokenSet.load(data.file("tokens-validation.npz"))
    vocabulary = len(load_tokenizer(data.path / "tokenizer"))
    shape, strategy = Shape(**recipe.distill.student.shape()), recipe.distill.student.layer_strategy
    untrained = make_student(load_model(folder), shape, strategy, tokens, 4096)
    return {
        "untrained student": loss_by_layout(load_model(folder), untrained, tokens, vocabulary),
        "distilled student": loss_by_layout(load_model(folder), load_model(student), tokens, vocabulary),
    }


def summarize(teacher: dict[str, float], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By metric: means, the margin with its standard error, and the share of the teacher's score."""
    result = {}
    for metric, reached in teacher.items():
        by_arm = {arm: {run["seed"]: run["scores"][metric] for run in runs if run["arm"] == arm} for arm in ARMS}
        seeds = sorted(by_arm["distilled"].keys() & by_arm["labels"].keys())
        margins = [by_arm["distilled"][seed] - by_arm["labels"][seed] for seed in seeds]
        error = statistics.stdev(margins) / len(margins) ** 0.5 if len(margins) > 1 else None
        means = {arm: statistics.mean(scores.values()) for arm, scores in by_arm.items() if scores}
        result[metric] = {
            "teacher": reached,
            **means,
            "margin": statistics.mean(margins) if margins else None,
            "standard_error": error,
            "share_of_teacher": means["distilled"] / reached if reached and "distilled" in means else None,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=HERE.parent / "recipes" / "home-assistant" / "distill.yaml")
    parser.add_argument("--workdir", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", action="append", default=[], help="override a value of the recipe, KEY=VALUE")
    parser.add_argument("--labels-learning-rate", type=float)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "distill_gain.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    log = terminal_log()
    recipe, _ = settled(read_recipe(arguments.recipe, tuple(arguments.set)), log)
    inputs = run(recipe, Store(arguments.workdir), log, until="merge").artifacts
    assert recipe.distill is not None
    parts = [inputs["merge"].key, recipe.distill.model_dump_json(), str(arguments.labels_learning_rate)]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    folder = arguments.workdir / "distill-gain" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    teacher = kept(folder / "teacher.json", lambda: answer_scores(recipe, inputs["merge"].path, inputs["data"]))
    runs: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for seed in arguments.seeds:
        for arm in ARMS:
            out = folder / f"{arm}-{seed}"

            def make(arm: str = arm, seed: int = seed, out: Path = out) -> dict[str, Any]:
                return train_student(recipe, arm, seed, inputs, out, arguments.labels_learning_rate, log)

            runs.append(kept(folder / f"{arm}-{seed}.json", make))
            result = {
                "host": describe_host(),
                "recipe": recipe.name,
                "student": recipe.distill.model_dump(mode="json"),
                "labels_learning_rate": arguments.labels_learning_rate or recipe.distill.learning_rate,
                "summary": summarize(teacher, runs),
                "runs": runs,
            }
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    result["cache"] = cache_losses(recipe, inputs, folder / f"distilled-{arguments.seeds[0]}")
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()
