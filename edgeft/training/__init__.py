"""Training: one loop, its losses, batches, checkpoints and the loading of models. Needs torch."""
