"""Robustness of a linear classifier fitted on clean images only: stylized test images, common corruptions, and shape against texture.

Corruptions are those of Hendrycks and Dietterich 2019 (arXiv 1903.12261) in `corruptions.py`. The shape share is that of Geirhos et al.
2019 (arXiv 1811.12231): among images with the shape of one class and the texture of another that are classified as one of the two, the
share that is classified by shape. Differs from the papers: under our own corruptions there are mean accuracies, not errors as shares of
AlexNet's, which hold for the files of ImageNet-C (`imagenet_c_mce`); and cue conflicts are all test images, stylized by our stylizer in the
style of a test image of another class. It keeps more of the content than the stylizer of Geirhos et al., so shape shares can be compared
with each other, but not with theirs.

An encoder is judged by a stylizer and in styles that its training did not use; otherwise the scores say that they are circular. The
published sets (Stylized-ImageNet, ImageNet-R, ImageNet-Sketch, ImageNet-C) are read by `targets/variants.py`.
"""

from __future__ import annotations

import copy
import logging
from typing import Annotated, Any, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation import Evaluation, ImageChange, LabeledFeatures, Predictions, Score, Subject
from ray_sassl.evaluation.changes import Stylized, Textures, textures_of
from ray_sassl.evaluation.corruptions import CORRUPTIONS, MAX_SEVERITY, Corrupted
from ray_sassl.evaluation.figures import draw
from ray_sassl.evaluation.intervals import bootstrap, mean_score
from ray_sassl.evaluation.logistic import fit_lbfgs
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.rows import Rows, moments
from ray_sassl.evaluation.scores import chance_of, check_features, class_name
from ray_sassl.evaluation.targets.variants import ALEXNET_ERRORS, Variant, classes_in
from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import did_you_mean, load_plugin, plugin_field
from ray_sassl.process.errors import UsageError
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.style.weights import weights_path
from ray_sassl.views.grid import image_grid

log = logging.getLogger(__name__)


class Config(ProtocolConfig):
    """Robustness.

    Attributes:
        corruptions: The corruptions to apply.
        severities: The severities of each corruption.
        stylize: The stylizer of the stylized copies. By default the first of the published network, `swift` and `color_statistics` that
            the encoder was not trained with and whose weights are on this machine.
        styles_per_class: Test images of each class that provide styles: no encoder was trained with them.
        bank: A style bank of the stylizer, such as of held-out paintings, that provides the styles of the stylized copies; by default the
            test images do. Cue conflicts always use test images, whose classes are known.
        sets: Published test sets with changed images, as `[{name: imagenet_r, path: FOLDER}]`; see `targets/variants.py`.
        render_px: Smaller images are enlarged to this size, stylized and reduced again; 0 stylizes them unchanged, which leaves little of
            the shape at 32 px.
        l2: Weight of the penalty on the classifier's squared weights; it is fitted on standardized features as in `linear`.
        max_iterations: Maximum number of iterations of L-BFGS.
        num_shown: Test images on the contact sheet.
        seed: Seed of all draws, which depend on it and the image's id.
    """

    corruptions: tuple[str, ...] = CORRUPTIONS
    severities: tuple[Annotated[int, Field(ge=1, le=MAX_SEVERITY)], ...] = tuple(range(1, MAX_SEVERITY + 1))
    stylize: plugin_field("ray_sassl.style.stylizers", StylizerConfig) | None = None  # type: ignore[valid-type]
    styles_per_class: int = Field(default=8, ge=1)
    bank: Annotated[str | None, LocalPath()] = None
    sets: tuple[Variant, ...] = ()
    render_px: int = Field(default=128, ge=0)
    l2: float = Field(default=1e-4, ge=0)
    max_iterations: int = Field(default=500, ge=1)
    num_shown: int = Field(default=6, ge=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _corruptions_are_known_and_made_once(self) -> Self:
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                raise ValueError(f"no corruption is called {name!r}{did_you_mean(name, CORRUPTIONS)}. Known: {', '.join(CORRUPTIONS)}.")
        for field in ("corruptions", "severities"):
            if len(set(getattr(self, field))) < len(getattr(self, field)):
                raise ValueError(f"{field} names something twice: {getattr(self, field)}")
        if len({part.name for part in self.sets}) < len(self.sets):
            raise ValueError(f"sets names something twice: {', '.join(part.name for part in self.sets)}")
        if sorted(self.severities) != list(self.severities):
            raise ValueError(f"severities must rise: {sorted(self.severities)}")
        if self.corruptions and not self.severities:
            raise ValueError("severities is empty; leave out the corruptions too, with corruptions=[]")
        return self

    @classmethod
    def tiny(cls) -> Self:
        return cls(severities=(3,), corruptions=("contrast", "gaussian_noise"))

    def build(self) -> Robustness:
        return Robustness(self)


class Robustness(Protocol):
    """Top-1 on clean, stylized and corrupted test images, and the shape share in conflicts of shape and texture.

    `corrupted_top1` is the mean over corruptions and severities (the mean corruption accuracy), `NAME_top1` that over a corruption's
    severities. The predictions are those for the stylized copies.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        config = self.config
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test, "robustness's linear classifier")
        published = {part.name: part.parts() for part in config.sets}  # a missing folder is told before anything is computed
        classifier = _fitted(subject, train, config)
        stylize = config.stylize or unused_stylizer(subject.trained_with)
        textures = textures_of(subject, test, stylize, config.styles_per_class, config.seed, None, "test")
        styles = textures
        if config.bank is not None:
            styles = textures_of(subject, test, stylize, config.styles_per_class, config.seed, config.bank, "test")
        stylized = Stylized(stylize, styles, config.seed, number=0, render_px=config.render_px)
        conflict = Stylized(stylize, textures, config.seed, number=1, other_class=True, render_px=config.render_px)
        corrupted = [Corrupted(name, severity, config.seed) for name in config.corruptions for severity in config.severities]
        clean_part, stylized_part, conflict_part, *corrupted_parts = subject.changed_outputs(
            classifier, [Corrupted(CORRUPTIONS[0], 0, config.seed), stylized, conflict, *corrupted]
        )
        corrupted_hits = None
        hits = {"clean_top1": _hits(clean_part), "stylized_top1": _hits(stylized_part)}
        chance = chance_of(test.labels)
        scores = {name: mean_score(values).as_share(chance) for name, values in hits.items()}
        if corrupted:
            rows = np.stack([_hits(part) for part in corrupted_parts])
            corrupted_hits = rows.reshape(len(config.corruptions), len(config.severities), -1)
            scores["corrupted_top1"] = mean_score(corrupted_hits.mean((0, 1))).as_share(chance)
            scores |= {
                f"{name}_top1": mean_score(rows.mean(0)).as_share(chance)
                for name, rows in zip(config.corruptions, corrupted_hits, strict=True)
            }
        texture_labels = textures.labels[conflict.styles(conflict_part.labels, conflict_part.sample_id)]
        scores |= _cue_scores(_predicted(conflict_part), conflict_part.labels, texture_labels)
        figures = {"images": self._contact_sheet(subject, test, stylized, conflict, textures)}
        is_circular = subject.trained_with == stylize.name
        details: dict[str, Any] = {"stylizer": stylize.name, "trained_with": subject.trained_with, "circular": is_circular}
        details |= {"styles": styles.sources, "predictions": "for the stylized copies", "images": len(test.labels)}
        if corrupted_hits is not None:
            by_severity = corrupted_hits.mean(2)
            figures["severity"] = self._curves(float(hits["clean_top1"].mean()), by_severity)
            details["top1_by_severity"] = {name: row.tolist() for name, row in zip(config.corruptions, by_severity, strict=True)}
        predictions = Predictions(stylized_part.sample_id, stylized_part.labels, _predicted(stylized_part))
        how = f"stylized by {stylize.name}" + (", which also stylized the training views: circular" if is_circular else "")
        if config.stylize is None and (wanted := preferred_stylizer(subject.trained_with)) != stylize.name:
            how += f"; {wanted} is not on this machine"
        notes = dict.fromkeys(("stylized_top1", "conflict_shape_top1", "conflict_texture_top1", "shape_share"), how)
        for parts in published.values():
            found, lacking = _published_scores(subject, classifier, parts)
            scores |= found
            notes |= {"imagenet_c_top1": f"no mCE without {', '.join(lacking)}"} if lacking else {}
        return Evaluation(scores, figures, details, predictions, {name: note for name, note in notes.items() if name in scores})

    def _curves(self, clean: float, by_severity: np.ndarray) -> bytes:
        """Top-1 over severity for each corruption, and their mean in black; severity 0 is the clean images."""
        config = self.config

        def paint(axes: Any) -> None:
            from matplotlib import colormaps

            for number, (name, row) in enumerate(zip(config.corruptions, by_severity, strict=True)):
                color = colormaps["tab20"](number % 20)
                axes.plot(
                    [0, *config.severities], [100 * clean, *(100 * row)], marker="o", markersize=3, linewidth=1, color=color, label=name
                )
            axes.plot([0, *config.severities], [100 * clean, *(100 * by_severity.mean(0))], color="black", linewidth=2.5, label="mean")
            axes.set_xticks([0, *config.severities])
            axes.set_xlabel("severity (0: clean)")
            axes.set_ylabel("top-1 / %")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

        return draw(7.5, 4, paint)

    def _contact_sheet(self, subject: Subject, test: LabeledFeatures, stylized: Stylized, conflict: Stylized, textures: Textures) -> bytes:
        """Some test images, one per line: unchanged, stylized, with the texture of another class, and corrupted at the middle severity."""
        config = self.config
        rows = np.random.default_rng(config.seed).permutation(len(test.labels))[: config.num_shown]
        labels, ids = test.labels[rows], test.sample_id[rows]
        originals = subject.images("test", ids)
        severity = sorted(config.severities)[len(config.severities) // 2] if config.severities else 0
        shown: list[tuple[str, ImageChange]] = [("stylized", stylized), ("cue conflict", conflict)]
        shown += [(f"{name} {severity}", Corrupted(name, severity, config.seed)) for name in config.corruptions if severity]
        columns = [originals, *(change.apply(originals, labels, ids) for _, change in shown)]
        others = textures.labels[conflict.styles(labels, ids)]
        captions = [
            [class_name(subject.class_names, label), "", f"+ {class_name(subject.class_names, other)}", *("" for _ in shown[2:])]
            for label, other in zip(labels.tolist(), others.tolist(), strict=True)
        ]
        titles = ["clean", *(title for title, _ in shown)]
        return image_grid([list(row) for row in zip(*columns, strict=True)], titles, captions, cell_px=max(112, subject.size_px // 2))


_PREFERRED = ("magenta", "swift", "color_statistics")


def preferred_stylizer(*trained_with: str | None) -> str | None:
    """The name of the one that `unused_stylizer` would take if the weights of all were here."""
    return next((name for name in _PREFERRED if name not in trained_with), None)


def unused_stylizer(*trained_with: str | None) -> StylizerConfig:
    """The default stylizer that encoders are judged by, which is not one that their training views were stylized by; a warning says if the
    weights of the preferred one are not on this machine.

    Raises:
        UsageError: each of them was used; only several encoders together can have done so.
    """
    for name in _PREFERRED:
        config: StylizerConfig = load_plugin("ray_sassl.style.stylizers", name).Config()
        weights = config.published_weights()
        if name not in trained_with and (weights is None or weights_path(weights).exists()):
            if (wanted := preferred_stylizer(*trained_with)) != name:
                log.warning(
                    "Robustness is judged by %s, since the weights of %s are not on this machine; scores by another stylizer cannot be "
                    "compared. Get them with `ray-sassl weights fetch %s`, or name the one to use: robustness.stylize=%s",
                    *(name, wanted, wanted, name),
                )
            return config
    raise UsageError(
        "each stylizer on this machine has stylized the training views of one of the encoders, so none can judge all of them; get the "
        "published one with `ray-sassl weights fetch magenta`, or name one: robustness.stylize=swift"
    )


def _published_scores(
    subject: Subject, classifier: LinearClassifier, parts: dict[str, list[DataConfig]]
) -> tuple[dict[str, Score], tuple[str, ...]]:
    """Top-1 on a published set, among the classes that it has, and the corruptions that are missing for ImageNet-C's mCE.

    Of ImageNet-C each corruption's mean over the severities, the mean of all, and the mCE where all fifteen are there: the mean error as a
    share of AlexNet's.
    """
    scores: dict[str, Score] = {}
    hits: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    chance = 0.0
    for name, folders in parts.items():
        hits[name] = []
        for data in folders:
            names = build_index(data).class_names
            classes = classes_in(names, subject.class_names, data.paths[0])
            part, _ = subject.outputs_on(classifier.among(classes), data)
            order = np.argsort(part.sample_id)
            hits[name].append((part.sample_id[order], (_predicted(part) == classes[part.labels])[order].astype(np.float64)))
        chance = 1 / len(names)
        scores[f"{name}_top1"] = _mean_of(hits[name]).as_share(chance)
    if not all(name.startswith("imagenet_c_") for name in hits):
        return scores, ()
    scores["imagenet_c_top1"] = _mean_of([part for found in hits.values() for part in found]).as_share(chance)
    lacking = tuple(name.removeprefix("imagenet_c_") for name in ALEXNET_ERRORS if name not in hits)
    if not lacking:
        shares = [(ids, (1 - values) / error) for name, error in ALEXNET_ERRORS.items() for ids, values in hits[name]]
        guessed = np.mean([(1 - chance) / error for error in ALEXNET_ERRORS.values()])
        scores["imagenet_c_mce"] = _mean_of(shares).as_share(float(guessed))
    return scores, lacking


def _mean_of(parts: list[tuple[np.ndarray, np.ndarray]]) -> Score:
    """The mean over parts of the mean of their values; each part is the ids (N,) of its images, ascending, and their values (N,).

    Its interval is over images, each with all its parts, as those of ImageNet-C hold the same images; otherwise it has none.
    """
    if all(np.array_equal(ids, parts[0][0]) for ids, _ in parts):
        return mean_score(np.mean([values for _, values in parts], axis=0))
    return Score(float(np.mean([values.mean() for _, values in parts])))


class LinearClassifier(nn.Module):
    """The number (B, 1) of the most likely class by a linear layer on standardized features; the lower number if equally likely."""

    def __init__(self, encoder: nn.Module, mean: np.ndarray, deviation: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("classes", torch.arange(len(bias)))
        for name, array in (("mean", mean), ("deviation", deviation), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, torch.from_numpy(np.asarray(array, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        standardized = (self.encoder(x) - self.get_buffer("mean")) / self.get_buffer("deviation")
        classes = self.get_buffer("classes")
        class_scores = standardized @ self.get_buffer("weight")[classes].T + self.get_buffer("bias")[classes]
        return classes[class_scores.argmax(1, keepdim=True)].float()

    def among(self, classes: np.ndarray) -> LinearClassifier:
        """The same, choosing among some of the classes (K,) int64 only."""
        narrowed = copy.copy(self)
        narrowed._buffers = self._buffers | {"classes": torch.from_numpy(np.sort(classes))}
        return narrowed


def _fitted(subject: Subject, train: LabeledFeatures, config: Config) -> LinearClassifier:
    mean, deviation = moments(train.features)
    weight, bias, _ = fit_lbfgs(Rows(train.features, (mean, deviation)), train.labels, config.l2, config.max_iterations)
    encoder, _ = subject.encoder()
    return LinearClassifier(encoder.cpu(), mean, deviation, weight, bias)


def _predicted(part: LabeledFeatures) -> np.ndarray:
    """(N,) int64, from the outputs of `LinearClassifier`."""
    return part.features[:, 0].astype(np.int64)


def _hits(part: LabeledFeatures) -> np.ndarray:
    return (_predicted(part) == part.labels).astype(np.float64)


def _cue_scores(predicted: np.ndarray, shape_labels: np.ndarray, texture_labels: np.ndarray) -> dict[str, Score]:
    """How often images are classified by their shape and by their texture, from predicted and true classes (N,)."""
    shape, texture = ((predicted == labels).astype(np.float64) for labels in (shape_labels, texture_labels))
    scores = {
        "conflict_shape_top1": mean_score(shape).as_share(chance_of(shape_labels)),
        "conflict_texture_top1": mean_score(texture).as_share(chance_of(texture_labels)),
    }
    if shape.sum() + texture.sum() > 0:
        scores["shape_share"] = bootstrap(len(shape), lambda rows: _share(shape[rows], texture[rows])).as_share(0.5)
    return scores


def _share(shape: np.ndarray, texture: np.ndarray) -> float:
    decided = shape.sum() + texture.sum()
    return float(shape.sum() / decided) if decided else 0.5
