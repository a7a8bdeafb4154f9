"""`hyperparameters: auto`: the rule gives what its table says, near what recipes that work have chosen."""

import numpy as np
import pytest

from edgeft.sections import Train
from edgeft.training.automatic import choose_hyperparameters
from edgeft.training.batches import plan_epochs


def chosen(section: Train, examples: int, tokens: int, longest: int, hidden: int) -> tuple[float, int, float]:
    taken = choose_hyperparameters(
        section, n_examples=examples, n_tokens=tokens, longest=longest, hidden_size=hidden
    ).section
    return taken.num_train_epochs, taken.batch_tokens, taken.learning_rate


@pytest.mark.parametrize(
    ("section", "data", "expected"),
    [
        ({}, (50, 5_000, 200, 576), (15, 512, 1.3e-3)),  # few examples: many epochs
        ({}, (100, 10_000, 200, 576), (10, 512, 1.3e-3)),
        ({}, (5_000, 500_000, 300, 576), (3, 2048, 1.3e-3)),
        ({}, (60_000, 12_000_000, 900, 4096), (1, 32768, 2.9e-4)),
        ({"method": "full"}, (10_003, 480_000, 270, 256), (5, 2048, 1e-3)),  # as recipes/banking77.yaml: 4, 2048, 1e-3
        ({"method": "full"}, (13_084, 420_000, 110, 64), (5, 2048, 2e-3)),  # as snips-intent.yaml: 4, 2048, 2e-3
        ({}, (100, 10_000, 3_000, 2048), (15, 4096, 4.9e-4)),  # the longest example fits in a batch: few steps
        ({"objective": "dpo"}, (1_000, 200_000, 400, 576), (2, 512, 6.6e-5)),
        ({"objective": "dpo", "method": "full"}, (1_000, 200_000, 400, 2048), (1 + 1, 512, 3.5e-6)),
        ({"objective": "text"}, (10, 2_000_000, 500, 576), (1, 8192, 1.3e-3)),
        ({"objective": "classification", "method": "full"}, (10_003, 140_000, 80, 384), (5, 512, 8.4e-5)),
        ({"method": "full"}, (1, 4, 4, 64), (40, 512, 1.4e-3)),
        ({"method": "full"}, (660, 19_000, 56, 256), (17, 512, 7.1e-4)),  # 37 steps an epoch, 600 wanted
        ({"method": "full"}, (1_300, 200_000, 300, 256), (5, 512, 7.1e-4)),
        ({"objective": "classification", "method": "full"}, (660, 13_000, 80, 384), (10, 512, 8.4e-5)),
    ],
)
def test_the_rule(section: dict, data: tuple[int, int, int, int], expected: tuple[float, int, float]) -> None:
    assert chosen(Train(**section), *data) == pytest.approx(expected)


def test_what_the_recipe_gives_wins_and_is_said() -> None:
    section = Train(learning_rate=7e-5, hyperparameters="auto")
    choice = choose_hyperparameters(section, n_examples=100, n_tokens=10_000, longest=200, hidden_size=576)
    assert choice.section.learning_rate == 7e-5
    assert choice.section.num_train_epochs == 10
    assert "learning_rate 7e-05 as the recipe says (the rule: 0.0013)" in choice.sentences[2]
    assert "num_train_epochs 10 (100 examples, hidden size 576)" in choice.sentences[0]


def test_the_batch_always_holds_the_longest_example() -> None:
    """Oracle: plan_epochs, which refuses a batch that does not."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, int(rng.integers(2, 5000)), int(rng.integers(1, 400)))
        choice = choose_hyperparameters(
            Train(),
            n_examples=len(lengths),
            n_tokens=int(lengths.sum()),
            longest=int(lengths.max()),
            hidden_size=int(rng.integers(32, 4096)),
        ).section
        plan_epochs(lengths, batch_tokens=choice.batch_tokens, epochs=choice.num_train_epochs, seed=0)
        assert 0 < choice.learning_rate <= 5e-3


@pytest.mark.parametrize(
    ("section", "n_validation", "watched"),
    [
        ({}, 60, True),
        ({}, 0, False),  # nothing to watch
        ({"num_train_epochs": 3}, 60, False),  # too few to be stopped
        ({"early_stopping_patience": 9}, 60, False),  # the recipe says it itself
        ({"metric_for_best_model": "exact_match"}, 60, False),
        ({"objective": "dpo"}, 60, False),
        ({"objective": "classification"}, 60, True),
    ],
)
def test_many_epochs_are_watched(section: dict, n_validation: int, watched: bool) -> None:
    given = Train(**section)
    made = choose_hyperparameters(
        given, n_examples=400, n_tokens=12_000, longest=80, hidden_size=256, n_validation=n_validation
    ).section
    expected = ("eval_loss", 3) if watched else (given.metric_for_best_model, given.early_stopping_patience)
    assert (made.metric_for_best_model, made.early_stopping_patience) == expected
