"""Distilling a small stylizer from a large one: what `ray-sassl stylize distill` does, without Ray.

The teacher is frozen; the student starts from random weights, or from an earlier student's. `crops` are images with the teacher's style codes, computed once; `training`
teaches the student's transformer to paint the teacher's pictures from mixtures of codes, and its predictor to tell the codes; `fidelity` measures
how near the two come.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_sassl.plugins import FrozenConfig

CONTENT_PX = 96
"""Side of the contents that are kept; training stylizes them at this size and at smaller ones."""
THUMBNAIL_PX = 64
"""Side of the images that the student's predictor sees."""
TEACHER_PX = 256
"""Side of the images that the teacher's predictor sees."""


class DistillConfig(FrozenConfig):
    """The student's training; defaults are our choice, those of the shipped weights."""

    num_crops: Annotated[int, Field(ge=8)] = 24_000
    """Crops whose codes the teacher computes once; half of them of styles, half of contents."""
    painted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the styles' crops that the teacher stylizes with a mixture of two others' styles: paintings that no data set holds."""
    steps: Annotated[int, Field(ge=1)] = 9_000
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Pictures of a step, of all workers together."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Peak for matrices and convolutions, reached after the warm-up; falls to zero along half a cosine."""
    learning_rate: Annotated[float, Field(gt=0)] = 6e-3
    """The same for biases and for the last convolution, by Adam."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    """Of matrices and convolutions."""
    warmup_steps: Annotated[int, Field(ge=1)] = 200
    own_codes_from: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training after which every second picture is painted with the student's own codes, which trains both networks at once."""
    sizes_px: tuple[int, ...] = (32, 64, 32, 96)
    """Sides of the contents, one after the other."""
    full_strength_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pictures whose code is the style's alone; in the others, alpha is uniform in [0, 1]."""
    hint_weight: Annotated[float, Field(ge=0)] = 1.0
    """Of the loss on the features between the layers, at the peak of the learning rate; both fall together."""
    effect_weight: Annotated[float, Field(ge=0)] = 0.2
    """Of the loss on what the student's codes do to the teacher's instance norms."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Of the moving average of the weights, which is the result."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the student's forward and backward passes; weights and the teacher stay float32."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sizes_fit(self) -> DistillConfig:
        if not self.sizes_px or any(size % 4 or not 32 <= size <= CONTENT_PX for size in self.sizes_px):
            raise ValueError(f"sizes_px are multiples of 4 from 32 to {CONTENT_PX}, not {self.sizes_px}")
        return self


FINE_TUNING = {"muon_learning_rate": 0.005, "learning_rate": 1.5e-3, "own_codes_from": 0.0}
"""Settings for a student that starts from an earlier one: a quarter of the rates, and both networks at once from the first step on."""
