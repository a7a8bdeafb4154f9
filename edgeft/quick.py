"""`edgeft run --quick`: the whole road with little of each, to see within a minute that it ends in a working file.

Training, data and the merge are those of the full run, so that their artifacts are shared with it. What comes after is
less, under other keys and in a run of another name: nothing of it can be taken for the full run's.
"""

from edgeft.bench.budgets import DROP, GAIN
from edgeft.recipe import Recipe

SUFFIX = "-quick"
EXAMPLES, PROMPTS, TOKENS = 50, 4, 8
SENTENCE = (
    f"quick: one file, {PROMPTS} parity prompts, {EXAMPLES} examples, no baselines; for a verdict leave --quick out"
)


def quick(recipe: Recipe) -> Recipe:
    """`recipe` with one exported file, few prompts and examples, no baselines, and no budgets that need these."""
    export, bench, parity = recipe.export, recipe.bench, recipe.parity
    kept = {export.shipped, recipe.recover.target if recipe.recover else None}
    changed = {
        "name": recipe.name + SUFFIX,
        "export": export.model_copy(
            update={
                "gguf": [entry for entry in export.gguf if entry.ftype in kept] or export.gguf[-1:],
                "onnx": [entry for entry in export.onnx if entry.name in kept],
                "encoder": export.encoder[-1:],
            }
        ),
        "parity": parity.model_copy(
            update={"prompts": min(parity.prompts, PROMPTS), "n_gen": min(parity.n_gen, TOKENS)}
        ),
        "bench": bench.model_copy(
            update={
                "limit": min(bench.limit or EXAMPLES, EXAMPLES),
                "baselines": False,
                "latency": bench.latency.model_copy(
                    update={
                        "prompts": min(bench.latency.prompts, PROMPTS),
                        "repetitions": min(bench.latency.repetitions, 2),
                        "n_gen": min(bench.latency.n_gen, 4 * TOKENS),
                    }
                ),
            }
        ),
        "gate": {metric: text for metric, text in recipe.gate.items() if not _needs_baselines(metric, kept)},
    }
    return recipe.model_copy(update=changed)


def _needs_baselines(metric: str, kept: set[str | None]) -> bool:
    """Whether a budget is about a difference to a baseline, or about a file that is not made."""
    of_file, _, name = metric.rpartition("/")
    return name.endswith((DROP, GAIN)) or bool(of_file and not any(file and of_file.endswith(file) for file in kept))
