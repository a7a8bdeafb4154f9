"""What the course of a training says: long enough, too long, or neither."""

from collections.abc import Sequence

RISE, FALL = 1.1, 0.93
TINY_LOSS = 0.02  # nats a token: what still falls below it is of no use any more


def training_advice(evaluations: Sequence[float]) -> str:
    """What a course of validation losses (nats per token) says of the length of the training; empty: nothing.

    Of fewer than four nothing is said. Overfitted: the loss ends `RISE` times its lowest or higher, which was at least
    a third of the evaluations ago. Under-trained: over the last quarter it fell to `FALL` of what it was or less, and
    ends at its lowest, above `TINY_LOSS`.
    """
    n = len(evaluations)
    if n < 4:
        return ""
    lowest, last = min(evaluations), evaluations[-1]
    at = n - 1 - list(reversed(evaluations)).index(lowest)
    before = evaluations[n - 1 - max(1, n // 4)]
    if last > RISE * lowest and n - 1 - at >= max(2, n // 3):
        return (
            f"overfitted: the validation loss was lowest at evaluation {at + 1} of {n}, and rose after it; train fewer "
            "epochs, or keep the best state (train.metric_for_best_model: eval_loss, which hyperparameters: auto sets)"
        )
    if last < FALL * before and last > TINY_LOSS and at == n - 1:
        return (
            f"under-trained: the validation loss still fell by {1 - last / before:.0%} over the last quarter; train "
            "more epochs (train.num_train_epochs) or raise train.learning_rate"
        )
    return ""
