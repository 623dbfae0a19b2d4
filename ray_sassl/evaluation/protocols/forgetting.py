"""What an encoder still knows of the images that its first weights were trained on, for a run that starts from those of another."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import model_validator

from ray_sassl.data import DataConfig
from ray_sassl.evaluation import Evaluation, Subject, Task
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.plugins import plugin_field
from ray_sassl.process.errors import UsageError

_KNN = {"name": "knn"}


class Config(ProtocolConfig):
    """Forgetting.

    Attributes:
        train: Labeled images of the source to fit on. By default those of the run that the weights came from.
        test: Labeled images of the source to measure on.
        protocol: How encoders are evaluated on them.
    """

    brings_images: ClassVar[bool] = True

    train: DataConfig | None = None
    test: DataConfig | None = None
    protocol: plugin_field("ray_sassl.evaluation.protocols", ProtocolConfig) = _KNN  # type: ignore[valid-type, assignment]

    @model_validator(mode="after")
    def _protocol_takes_images(self) -> Self:
        if self.protocol.brings_images:
            raise ValueError(f"{self.protocol.name} brings its own images; take knn, linear, few_shot or finetune")
        return self

    def absent_images(self) -> str | None:
        if self.train is not None and self.test is not None:
            return None
        return "forgetting.train and forgetting.test are not set, and the run did not start from one that has such images"

    def build(self) -> Forgetting:
        return Forgetting(self)


class Forgetting(Protocol):
    """The scores of the protocol on the source's images; the starting point, evaluated beside the run, has what can be forgotten."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        if (reason := self.config.absent_images()) is not None:
            raise UsageError(f"{reason}; give them: forgetting.train='{{path: FOLDER}}' forgetting.test='{{path: FOLDER}}'")
        assert self.config.train is not None
        assert self.config.test is not None
        return subject.evaluate([Task(self.config.protocol, self.config.train, self.config.test)])[0]
