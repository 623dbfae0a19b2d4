"""Distilling a small stylizer from a large one: what `ray-sassl stylize distill` does, without Ray.

The teacher is frozen; the student starts from random weights or from an earlier student's weights. `crops` makes images with the teacher's
style codes, which are computed once. `training` teaches the student's transformer to stylize as the teacher does, from mixtures of codes,
and its predictor to predict the codes. `fidelity` measures how close the two are.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_sassl.plugins import FrozenConfig

CONTENT_PX = 96
"""Side of the stored content images; training stylizes them at this size and at smaller ones."""
THUMBNAIL_PX = 64
"""Side of the images that the student's predictor sees."""
TEACHER_PX = 256
"""Side of the images that the teacher's predictor sees."""


class DistillConfig(FrozenConfig):
    """The student's training; defaults are our choice, those of the shipped weights."""

    num_crops: Annotated[int, Field(ge=8)] = 24_000
    """Crops whose codes the teacher computes once; half of them show styles, half contents."""
    painted_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Share of the style crops that the teacher first stylizes with a mixture of two other styles: styles that no data set has."""
    steps: Annotated[int, Field(ge=1)] = 9_000
    batch_size: Annotated[int, Field(ge=2)] = 16
    """Pictures per step, of all workers together."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Peak rate for matrices and convolutions, reached after the warm-up; it falls to zero along half a cosine."""
    learning_rate: Annotated[float, Field(gt=0)] = 6e-3
    """The same for biases and for the last convolution, which Adam trains."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.03
    """Weight decay of matrices and convolutions."""
    warmup_steps: Annotated[int, Field(ge=1)] = 200
    own_codes_from: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the training after which every second picture is stylized with the student's own codes, so that both networks are
    trained."""
    sizes_px: tuple[int, ...] = (32, 64, 32, 96)
    """Sides of the contents; steps take them in turn."""
    full_strength_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the pictures stylized with the style's code unmixed; for the others, alpha is uniform in [0, 1]."""
    hint_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the loss on the features between the layers, at the peak of the learning rate; both fall together."""
    effect_weight: Annotated[float, Field(ge=0)] = 0.2
    """Weight of the loss on what the student's codes do to the teacher's instance norms."""
    average_decay: Annotated[float, Field(ge=0, lt=1)] = 0.998
    """Decay of the moving average of the weights; the average is the result."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the student's forward and backward passes; weights and the teacher stay float32."""
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _sizes_fit(self) -> DistillConfig:
        if not self.sizes_px or any(size % 4 or not 32 <= size <= CONTENT_PX for size in self.sizes_px):
            raise ValueError(f"sizes_px must be multiples of 4 from 32 to {CONTENT_PX}, not {self.sizes_px}")
        return self


FINE_TUNING = {"muon_learning_rate": 0.005, "learning_rate": 1.5e-3, "own_codes_from": 0.0}
"""Settings for a student that starts from an earlier one: a quarter of the rates, and both networks are trained from the start."""
