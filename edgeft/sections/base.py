"""What every section of a recipe is."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

TorchDtype = Literal["auto", "float32", "bfloat16"]
"""`auto`: bfloat16 where this machine multiplies it faster than float32, else float32 (`edgeft.torch_dtype`)."""


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, types are not guessed, values do not change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
