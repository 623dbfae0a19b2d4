"""What the features look like: scores of collapse and spread, and pictures.

Alignment and uniformity are those of Wang and Isola 2020 (arXiv 2005.10242); positive pairs are two of SimCLR's views of a test image,
whatever the encoder was trained with, so that runs with different views can be compared. The effective rank is RankMe (Garrido et al. 2023,
arXiv 2210.02885). An image's style sensitivity is the mean cosine distance of its features from those of copies that were stylized in the
styles of train images.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from pydantic import Field
from torch.nn import functional as F

from ray_sassl.evaluation import Evaluation, LabeledFeatures, Score, Subject
from ray_sassl.evaluation.changes import Augmented, Stylized, textures_of
from ray_sassl.evaluation.figures import curves, scatter
from ray_sassl.evaluation.geometry import alignment, nearest, principal_components, uniformity
from ray_sassl.evaluation.intervals import mean_score
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.scores import check_features, class_name
from ray_sassl.nn.collapse import effective_rank, embedding_std
from ray_sassl.plugins import plugin_field
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.views.grid import image_grid


class Config(ProtocolConfig):
    """Diagnosis of features.

    Attributes:
        num_queries: Test images whose neighbors are shown.
        num_neighbors: Train images shown for each, and used for `same_class_share`.
        num_shown: How many of the most and of the least style-sensitive images are shown.
        stylize: The stylizer of the stylized copies.
        style_copies: Stylized copies of each test image.
        styles_per_class: Train images of each class that provide styles.
        render_px: As in `robustness`: smaller images are enlarged to this size, stylized and reduced again, since at 32 px little but a
            blur is left.
        max_images: Maximum number of images on the map and for uniformity and effective rank; of more images, a random sample is used.
        seed: Seed of all draws.
    """

    num_queries: int = Field(default=10, ge=1)
    num_neighbors: int = Field(default=8, ge=1)
    num_shown: int = Field(default=6, ge=1)
    stylize: plugin_field("ray_sassl.style.stylizers", StylizerConfig) = "swift"  # type: ignore[valid-type]
    style_copies: int = Field(default=2, ge=1)
    styles_per_class: int = Field(default=8, ge=1)
    render_px: int = Field(default=128, ge=0)
    max_images: int = Field(default=10_000, ge=2)
    seed: int = Field(default=0, ge=0)

    @classmethod
    def tiny(cls) -> Self:
        return cls(style_copies=1)

    def build(self) -> Diagnosis:
        return Diagnosis(self)


class Diagnosis(Protocol):
    """Scores of spread, alignment and style sensitivity; figures of neighbors, a map, and the most and least sensitive images."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def evaluate(self, subject: Subject) -> Evaluation:
        config = self.config
        train, test = subject.features("train"), subject.features("test")
        check_features(train, test)
        textures = textures_of(subject, train, config.stylize, config.styles_per_class, config.seed, None)
        changes = [Augmented(config.seed, number) for number in range(2)]
        copies = [
            Stylized(config.stylize, textures, config.seed, number, render_px=config.render_px) for number in range(config.style_copies)
        ]
        first, second, *stylized = map(_tensor, subject.changed_features([*changes, *copies]))

        z = _tensor(test)
        rows = _sample(len(z), config.max_images, config.seed)
        similarity, places = nearest(z, train.features, config.num_neighbors)
        same_class = train.labels[places.numpy()] == test.labels[:, None]
        distances = torch.stack([1 - F.cosine_similarity(z, copy, dim=1) for copy in stylized]).mean(0).numpy()
        points, shares = principal_components(z[rows], 2)
        spectrum = torch.linalg.svdvals(F.normalize(z[rows].double(), dim=1))
        scores = {
            "alignment": mean_score(alignment(first, second).numpy()),
            "uniformity": Score(uniformity(z[rows])),
            "effective_rank": Score(effective_rank(z[rows]).item()),
            "feature_std": Score(embedding_std(z).item()),
            "style_distance": mean_score(distances),
            "same_class_share": mean_score(same_class.mean(1)).as_share(_same_class_chance(train.labels, test.labels)),
        }
        figures = {
            "neighbors": self._neighbors(subject, train, test, places.numpy(), similarity.numpy()),
            "map": scatter(
                points.numpy(),
                test.labels[rows],
                subject.class_names,
                *(f"component {number + 1} ({share:.0%} of the variance)" for number, share in enumerate(shares.tolist())),
            ),
            "spectrum": curves(
                range(1, len(spectrum) + 1), {"": (spectrum / spectrum[0]).tolist()}, "direction", "singular value", is_log=True
            ),
            "style": self._style(subject, test, distances, copies),
        }
        order = np.argsort(distances)
        details = {
            "images": len(z),
            "width": z.shape[1],
            "styles": textures.sources,
            "least_style_sensitive": test.sample_id[order[:100]].tolist(),
            "most_style_sensitive": test.sample_id[order[::-1][:100]].tolist(),
        }
        return Evaluation(scores, figures, details)

    def _neighbors(
        self, subject: Subject, train: LabeledFeatures, test: LabeledFeatures, places: np.ndarray, similarity: np.ndarray
    ) -> bytes:
        """Queries spread over the classes, each with its neighbors; neighbors of another class are marked by an x."""
        rng = np.random.default_rng(self.config.seed)
        shuffled = rng.permutation(len(test.labels))
        turn = np.array([np.sum(test.labels[shuffled[:place]] == test.labels[row]) for place, row in enumerate(shuffled[:2000])])
        queries = shuffled[np.lexsort((test.labels[shuffled[:2000]], turn))][: self.config.num_queries]
        shown = train.sample_id[places[queries]]
        distinct, back = np.unique(shown, return_inverse=True)
        neighbors = subject.images("train", distinct)[back.reshape(shown.shape)]
        images = [[image, *near] for image, near in zip(subject.images("test", test.sample_id[queries]), neighbors, strict=True)]
        captions = []
        for row in queries:
            own = int(test.labels[row])
            near = [
                f"{value:.2f} {'' if label == own else 'x '}{class_name(subject.class_names, label)}"
                for value, label in zip(similarity[row].tolist(), train.labels[places[row]].tolist(), strict=True)
            ]
            captions.append([class_name(subject.class_names, own), *near])
        titles = ["query", *(f"neighbor {number + 1}" for number in range(places.shape[1]))]
        return image_grid(images, titles, captions, cell_px=max(112, subject.size_px // 2))

    def _style(self, subject: Subject, test: LabeledFeatures, distances: np.ndarray, copies: list[Stylized]) -> bytes:
        """The images whose features change most and least when they are stylized, next to their copies."""
        order = np.argsort(distances, kind="stable")
        chosen = np.concatenate([order[::-1][: self.config.num_shown], order[: self.config.num_shown][::-1]])
        labels, ids = test.labels[chosen], test.sample_id[chosen]
        originals = subject.images("test", ids)
        columns = [originals, *(copy.apply(originals, labels, ids) for copy in copies)]
        images = [list(row) for row in zip(*columns, strict=True)]
        kinds = ["most"] * min(len(order), self.config.num_shown) + ["least"] * min(len(order), self.config.num_shown)
        captions = [[f"{kind}: {distances[row]:.3f}", *("" for _ in copies)] for kind, row in zip(kinds, chosen, strict=True)]
        titles = ["cosine distance", *(f"stylized {number + 1}" for number in range(len(copies)))]
        return image_grid(images, titles, captions, cell_px=max(112, subject.size_px // 2))


def _tensor(part: LabeledFeatures) -> torch.Tensor:
    """(N, F) float32."""
    return torch.from_numpy(np.array(part.features, np.float32))


def _sample(num: int, most: int, seed: int) -> np.ndarray:
    return np.arange(num) if num <= most else np.sort(np.random.default_rng(seed).permutation(num)[:most])


def _same_class_chance(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """The probability that a random train image and a random test image have the same class."""
    num = int(max(train_labels.max(), test_labels.max())) + 1
    train, test = (np.bincount(labels, minlength=num) / len(labels) for labels in (train_labels, test_labels))
    return float(train @ test)
