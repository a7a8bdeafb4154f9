"""The model that ships: what the last stage behind training made of it."""

from edgeft.artifact import Artifact

MODEL_STAGES = ("recover", "distill", "merge")
"""Stages whose artifact is a Hugging Face folder with provenance.json, the latest of a run first."""


def final_model(inputs: dict[str, Artifact]) -> Artifact:
    """The latest model among what a stage reads."""
    return next(inputs[stage] for stage in MODEL_STAGES if stage in inputs)
