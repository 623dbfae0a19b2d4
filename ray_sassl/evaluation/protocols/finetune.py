"""Fine-tuning: the whole network, encoder and a linear classifier, trained on all train labels (`training.py` says how)."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from ray_sassl.evaluation import Evaluation, Subject
from ray_sassl.evaluation.protocols import Protocol
from ray_sassl.evaluation.training import TrainingConfig, evaluate_by_training


class Config(TrainingConfig):
    """Fine-tuning of the whole network; the other fields are those of `TrainingConfig`.

    Attributes:
        epochs: Passes over the train images; our choice. SimCLR and BYOL train for 20,000 steps of 256 images whatever the data set.
    """

    epochs: int = Field(default=30, ge=1)

    @classmethod
    def tiny(cls) -> Self:
        return cls(epochs=1)

    def build(self) -> FineTuning:
        return FineTuning(self)


class FineTuning(Protocol):
    """Top-1, top-5 and the mean over classes, after training on all train images."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        return evaluate_by_training(subject, *subject.labels("train"), self.config.epochs, self.config)
