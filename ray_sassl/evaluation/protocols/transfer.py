"""Transfer: the same frozen or fine-tuned encoder evaluated on other data sets, each with its own split and metric.

The papers' data sets are named by their cards (`evaluation/targets/cards.py`) and read from the cache, which `ray-sassl data fetch NAME`
fills; any other labeled data set is given by its train and test images. As in Kornblith, Shlens and Le 2019 (arXiv 1805.08974),
and in SimCLR (appendix B.8), BYOL and SASSL after them, each is evaluated by logistic regression on frozen features, with the penalty
chosen on held-out train images, and images are resized on the shorter side to the encoder's size (bicubic) and cut to the middle square;
any other protocol and view can be used instead.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, model_validator

from ray_sassl.data import DataConfig
from ray_sassl.evaluation import Evaluation, Predictions, Score, Subject, Task
from ray_sassl.evaluation.intervals import bootstrap
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.targets import Card, Half, Metric
from ray_sassl.evaluation.targets.cards import card_of, find_card
from ray_sassl.evaluation.targets.prepare import check_card, default_root, prepared_cards, prepared_data
from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig, plugin_field
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import CenterCrop, EvaluationView

log = logging.getLogger(__name__)

_KORNBLITH = {"name": "linear", "l2": "grid"}


class Target(FrozenConfig):
    """One data set.

    Attributes:
        name: A card's name, or any other name for your own data set.
        train: Its train images; by default those of the card, from the cache.
        test: Its test images.
        metric: The score that is reported; by default the card's, or top-1.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    train: DataConfig | None = None
    test: DataConfig | None = None
    metric: Metric | None = None

    @model_validator(mode="after")
    def _images_are_known(self) -> Self:
        if (self.train is None) is not (self.test is None):
            raise ValueError(f"target {self.name} needs both train and test, or neither")
        if self.train is None:
            card_of(self.name)
        return self


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Config(ProtocolConfig):
    """Transfer to several data sets.

    Attributes:
        targets: Cards by name, and your own data sets as `{name: mine, train: {path: ...}, test: {path: ...}}`. By default all cards whose
            data sets have been fetched.
        protocol: How each is evaluated.
        crop: How an image becomes a square, as in `evaluate.crop`.
        interpolation: The filter that resizes it.
        root: Folder or URI that `data fetch --out` has filled and that a cluster's nodes reach; by default this machine's cache.
    """

    brings_images: ClassVar[bool] = True

    targets: tuple[Annotated[Target, BeforeValidator(_named)], ...] = ()
    protocol: plugin_field("ray_sassl.evaluation.protocols", ProtocolConfig) = _KORNBLITH  # type: ignore[valid-type, assignment]
    crop: CenterCrop = "shorter_side"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    root: Annotated[str | None, LocalPath()] = None

    @model_validator(mode="after")
    def _targets_and_protocol_fit(self) -> Self:
        names = [target.name for target in self.targets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice among the targets")
        assert isinstance(self.protocol, ProtocolConfig)
        if self.protocol.brings_images:
            raise ValueError(
                f"{self.protocol.name} brings its own images, so it cannot use those of a target; take linear, finetune, knn or few_shot"
            )
        return self

    def absent_images(self) -> str | None:
        root = self.root or default_root()
        if self.targets or prepared_cards(root):
            return None
        return (
            f"there are no data sets in {root}; `ray-sassl data cards` lists those that `data fetch` puts there, and transfer.targets "
            "takes your own"
        )

    def build(self) -> Transfer:
        return Transfer(self)


@dataclass(frozen=True)
class _Ready:
    """A target whose images exist and match its card."""

    name: str
    metric: Metric
    card: Card | None
    task: Task
    num_train: int
    num_test: int
    num_classes: int
    chance: float

    @property
    def note(self) -> str:
        return f"{self.num_classes:,} classes, {self.num_train:,} train, {self.num_test:,} test, chance {self.chance:.1%}"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (self.metric, *(self.card.also if self.card is not None else ()))


class Transfer(Protocol):
    """Each target's own metric, such as `flowers102_mean_per_class`, and the mean over targets as `mean_accuracy` if all are shares."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        ready = [self._ready(subject, target) for target in self._targets()]
        # The largest start first, so that no large one runs alone at the end.
        ordered = sorted(ready, key=lambda target: -(target.num_train + target.num_test))
        log.info(
            "%d data set%s, %s images",
            len(ready),
            "" if len(ready) == 1 else "s",
            f"{sum(target.num_train + target.num_test for target in ready):,}",
        )
        found = dict(zip([target.name for target in ordered], subject.evaluate([target.task for target in ordered]), strict=True))
        scores: dict[str, Score] = {}
        notes: dict[str, str] = {}
        for target in ready:
            own = {f"{target.name}_{name}": score for name, score in _scores(target, found[target.name]).items()}
            scores |= own
            notes |= dict.fromkeys(own, target.note)
        main = [score for target in ready if (score := scores.get(f"{target.name}_{target.metric}")) is not None and score.is_share]
        if len(ready) > 1 and len(main) == len(ready):
            chances = [score.chance for score in main if score.chance is not None]
            scores["mean_accuracy"] = Score(
                float(np.mean([score.value for score in main])),
                is_share=True,
                chance=float(np.mean(chances)) if len(chances) == len(main) else None,
            )
        return Evaluation(
            scores,
            {f"{name}_{figure}": content for name, part in found.items() for figure, content in part.figures.items()},
            {target.name: _details(target, found[target.name]) for target in ready},
            found[ready[0].name].predictions if len(ready) == 1 else None,
            notes,
        )

    def _targets(self) -> tuple[Target, ...]:
        if self.config.targets:
            return self.config.targets
        root = self.config.root or default_root()
        cards = prepared_cards(root)
        if not cards:
            raise UsageError(
                f"there are no data sets in {root} to transfer to; fetch some (`ray-sassl data cards` lists them), or name your own: "
                "transfer.targets='[{name: mine, train: {path: FOLDER}, test: {path: FOLDER}}]'"
            )
        return tuple(Target(name=card.name) for card in cards)

    def _ready(self, subject: Subject, target: Target) -> _Ready:
        """The target with its images, checked against its card.

        Raises:
            UsageError: the images are missing or do not match the card.
        """
        card = find_card(target.name)
        try:
            if target.train is not None and target.test is not None:
                train, test = target.train, target.test
            else:
                train, test = prepared_data(card_of(target.name), self.config.root or default_root())
            other = subject.on(train, test)
            halves: dict[Half, np.ndarray] = {half: other.labels(half)[1] for half in ("train", "test")}
            if card is not None:
                for half, labels in halves.items():
                    check_card(card, half, labels, len(other.class_names) or None)
        except UsageError as error:
            raise UsageError(f"target {target.name}: {error}") from error
        metric = target.metric or (card.metric if card is not None else "top1")
        counts = np.bincount(halves["test"])
        num_classes = card.num_classes if card is not None else int(max(labels.max() for labels in halves.values())) + 1
        sizes = len(halves["train"]), len(halves["test"])
        task = Task(self.config.protocol, train, test, EvaluationView(subject.size_px, self.config.crop, self.config.interpolation))
        return _Ready(target.name, metric, card, task, *sizes, num_classes, float(counts.max() / counts.sum()))


def _scores(target: _Ready, found: Evaluation) -> dict[str, Score]:
    """The target's metrics, or all top-1 scores of a protocol with several settings, such as few_shot."""
    if target.metric not in found.scores and target.metric != "quadratic_kappa":
        return {name: score for name, score in found.scores.items() if name.endswith("top1") and not name.startswith("train")}
    scores = {name: found.scores[name] for name in target.metrics if name in found.scores}
    if "quadratic_kappa" in target.metrics and found.predictions is not None:
        scores["quadratic_kappa"] = quadratic_kappa(found.predictions, target.num_classes)
    return {name: scores[name] for name in target.metrics if name in scores}


def _details(target: _Ready, found: Evaluation) -> dict[str, Any]:
    facts = {"metric": target.metric, "num_train": target.num_train, "num_test": target.num_test, "num_classes": target.num_classes}
    card = {"splits": target.card.splits, "license": target.card.license, "source": target.card.source} if target.card is not None else {}
    return {**facts, "chance": target.chance, **card, **found.details}


def quadratic_kappa(predictions: Predictions, num_classes: int) -> Score:
    """Cohen's kappa with quadratic weights (Cohen 1968), with its bootstrap interval: 1 for full agreement, 0 for agreement by chance."""
    step = np.arange(num_classes)
    weights = (step[:, None] - step) ** 2.0
    cells = predictions.labels * num_classes + predictions.predicted

    def kappa(rows: np.ndarray) -> float:
        table = np.bincount(cells[rows], minlength=num_classes**2).reshape(num_classes, num_classes)
        by_chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
        expected = float((weights * by_chance).sum())
        return 1.0 - float((weights * table).sum()) / expected if expected else 1.0

    return replace(bootstrap(len(cells), kappa), chance=0.0)
