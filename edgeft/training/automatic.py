"""`hyperparameters: auto`: epochs, batch and learning rate from the data and the model, by a rule one can read.

| key | rule | why |
|---|---|---|
| num_train_epochs | 3; 5 where the hidden size is below 512; as many more as 1,000 examples seen need, or 150 steps, at most 15; where the hidden size is below 512 as many more as 600 steps need (`classification` 250), at most 40; as many fewer as 100,000 examples seen allow, at least 1. `dpo` and `orpo`: at most 2; `text`: 1 | hosted services start at 3 and bound the examples seen from both sides [1]; tiny models gained from more passes in our recipes (4 to 8), and with a few hundred examples learn little in fewer than some 500 steps (benchmarks/five_tasks.py) |
| batch_tokens | the tokens of one epoch / 200, down to a power of two, within 512 and 32,768; never below the longest example | some 200 steps an epoch: hosted services took 0.2 % of the examples [2], on models that need fewer steps |
| learning_rate, lora and qlora | 5e-4 × (2000 / hidden size) ^ 0.781, at most 5e-3 | the fit of Thinking Machines over LoRA runs on the Llama family [3] |
| learning_rate, full | 1e-3 × (256 / hidden size) ^ 0.5 × (batch_tokens / 2,048) ^ 0.25, the last factor at most 1 | small batches are noisy: 7e-4 was best at 512 in recipes/home-assistant; else through our recipes (2e-3 to 3e-3 at 64, 1e-3 at 256) and SmolLM2's own fine-tuning (1e-3 at 576 and 960, 3e-4 at 2,048) [4] |
| learning_rate, `dpo` and `orpo` | a twentieth of these; a hundredth with `full` | the preference gradient has no scale of its own; between SmolLM2's 1e-3 → 1e-6 [4] and TRL's 1e-5 for adapters |
| learning_rate, `classification` | 5e-5 × (768 / hidden size) ^ 0.75; 10 × that with adapters | BERT's own fine-tuning, the top of its range [5], widened to smaller encoders; adapters as in [3] |
| early_stopping_patience, metric_for_best_model | 3 epochs without a better validation loss end the training, and the best state is kept, where there are 5 epochs or more and validation examples | many passes are safe only where someone watches |

[1] OpenAI Cookbook, "Data preparation and analysis for chat model fine-tuning": 3 epochs, 100 to 25,000 examples
    seen, 1 to 25 epochs. Our bounds are higher: the models here are a thousand times smaller.
[2] OpenAI's fine-tuning guide of 2022: about 0.2 % of the examples, at most 256.
[3] Schulman et al. 2025, "LoRA Without Regret", and the defaults of their cookbook: LR = 5e-5 · 10 · (2000/H)^0.781.
[4] Allal et al. 2025, "SmolLM2", recipes of the alignment handbook.
[5] Devlin et al. 2019, "BERT", appendix A.3: 5e-5, 4e-5, 3e-5, 2e-5.

A rule of this kind is a start, not an optimum: the validation loss at each epoch says whether to go up or down.
"""  # noqa: E501

import math
from dataclasses import dataclass

from edgeft.sections import Train

SMALL_HIDDEN = 512
MIN_SEEN, MAX_SEEN = 1_000, 100_000
MAX_EPOCHS, MAX_EPOCHS_SMALL = 15, 40
MIN_STEPS = 150
MIN_STEPS_SMALL = {"sft": 600, "classification": 250}
BATCH_OF_RATE = 2048  # the batch that the rate of `full` is for
WATCHED_EPOCHS, PATIENCE = 5, 3
STEPS_PER_EPOCH = 200
MIN_BATCH, MAX_BATCH = 512, 32_768
PREFERENCE = ("dpo", "orpo")


@dataclass(frozen=True)
class Choice:
    """`section` with the chosen values in place; `sentences` say what was chosen and from what."""

    section: Train
    sentences: tuple[str, ...]


def choose_hyperparameters(
    section: Train, *, n_examples: int, n_tokens: int, longest: int, hidden_size: int, n_validation: int = 0
) -> Choice:
    """The section with epochs, batch, learning rate and what ends the training by the rule of this module.

    A key the recipe gives (`section.model_fields_set`) stays as given. `n_examples`, `n_tokens` and `longest` (of
    one example, in tokens) are of the training set, `n_validation` counts the examples to watch; `hidden_size` is the
    model's. A pure function.
    """
    batch = _batch_tokens(n_tokens, longest)
    used = section.batch_tokens if "batch_tokens" in section.model_fields_set else batch
    epochs = _epochs(section.objective, n_examples, n_tokens / used, hidden_size)
    rate = _learning_rate(section.objective, section.method, hidden_size, used)
    chosen = {"num_train_epochs": float(epochs), "batch_tokens": batch, "learning_rate": rate}
    reasons = {
        "num_train_epochs": f"{n_examples:,} examples, hidden size {hidden_size}",
        "batch_tokens": f"{n_tokens:,} tokens, the longest example of {longest:,}",
        "learning_rate": f"{section.method}, {section.objective}, hidden size {hidden_size}",
    }
    taken = {name: value for name, value in chosen.items() if name not in section.model_fields_set}
    sentences = [
        f"hyperparameters: auto: {name} {value:g} ({reasons[name]})"
        if name in taken
        else f"hyperparameters: auto: {name} {getattr(section, name):g} as the recipe says (the rule: {value:g})"
        for name, value in chosen.items()
    ]
    watched = _watched(section, taken.get("num_train_epochs", section.num_train_epochs), n_validation)
    if watched:
        sentences.append(
            f"hyperparameters: auto: the best state is kept, and {PATIENCE} epochs without a better validation loss "
            "end the training"
        )
    return Choice(section.model_copy(update=taken | watched), tuple(sentences))


def _watched(section: Train, epochs: float, n_validation: int) -> dict[str, str | int]:
    """What stops the training by its validation loss; nothing where the recipe says it itself."""
    given = {"metric_for_best_model", "early_stopping_patience"} & section.model_fields_set
    if (
        given
        or section.stages
        or section.objective not in MIN_STEPS_SMALL
        or epochs < WATCHED_EPOCHS
        or not n_validation
    ):
        return {}
    return {"metric_for_best_model": "eval_loss", "early_stopping_patience": PATIENCE}


def _epochs(objective: str, n_examples: int, steps: float, hidden_size: int) -> int:
    """`steps` are those of one epoch."""
    if objective == "text":
        return 1
    small = hidden_size < SMALL_HIDDEN
    epochs, most = (5, MAX_EPOCHS_SMALL) if small else (3, MAX_EPOCHS)
    least_steps = MIN_STEPS_SMALL.get(objective, MIN_STEPS) if small else MIN_STEPS
    epochs = max(epochs, min(MAX_EPOCHS, math.ceil(MIN_SEEN / max(1, n_examples))))
    epochs = max(epochs, min(most, math.ceil(least_steps / max(1e-9, steps))))
    epochs = min(epochs, max(1, MAX_SEEN // max(1, n_examples)))
    return min(epochs, 2) if objective in PREFERENCE else epochs


def _batch_tokens(n_tokens: int, longest: int) -> int:
    batch = 2 ** int(math.log2(max(1, n_tokens // STEPS_PER_EPOCH)))
    batch = min(max(batch, MIN_BATCH), MAX_BATCH)
    return max(batch, 2 ** math.ceil(math.log2(max(1, longest))))


def _learning_rate(objective: str, method: str, hidden_size: int, batch_tokens: int) -> float:
    full = method == "full"
    if objective == "classification":
        rate = 5e-5 * (768 / hidden_size) ** 0.75 * (1 if full else 10)
    elif full:
        noise = 1.0 if objective in PREFERENCE else min(1.0, batch_tokens / BATCH_OF_RATE) ** 0.25
        rate = 1e-3 * (256 / hidden_size) ** 0.5 * noise
    else:
        rate = min(5e-3, 5e-4 * (2000 / hidden_size) ** 0.781)
    if objective in PREFERENCE:
        rate /= 100 if full else 20
    return float(f"{rate:.1e}")
