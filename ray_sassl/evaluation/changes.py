"""Changes of images that several protocols use: SimCLR's augmentation, and style transfer at full strength.

Every choice is keyed by (seed, number, sample id), so a change does the same to an image on any worker and in any batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

from ray_sassl.evaluation import ImageChange, LabeledFeatures, Split, Subject
from ray_sassl.evaluation.splits import up_to_n_of_each
from ray_sassl.nn.chunks import Chunks
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.plugins import load_plugin
from ray_sassl.process.errors import UsageError
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.stylizers import Stylizer, StylizerConfig
from ray_sassl.views import opencv
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import draw
from ray_sassl.views.keyed import DrawKey, Stream
from ray_sassl.views.recipes import simclr

_PIXELS_AT_ONCE = 32 * 256 * 256


@dataclass(frozen=True)
class Augmented(ImageChange):
    """SimCLR's view of an image (Chen et al. 2020, arXiv 2002.05709, appendix A): crop, flip, colors, blur.

    Attributes:
        seed: The seed of the draws.
        number: Views of different numbers are drawn independently.
    """

    seed: int
    number: int

    @property
    def key(self) -> str:
        return f"SimCLR's view {self.number}, seed {self.seed}"

    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        size_px = images.shape[1]
        config = simclr(size_px).left
        params = draw(config, np.full((len(images), 2), size_px), DrawKey(self.seed, 0, sample_id, self.number))
        return opencv.color(crop(images, params, size_px, config.interpolation), params)


@dataclass(frozen=True, eq=False)
class Textures:
    """Styles to stylize images in.

    Attributes:
        codes: (N, C) float32, style codes.
        labels: (N,) int64, the class of the image that each style comes from; -1 for styles without a class.
        sources: Description of where they come from.
    """

    codes: np.ndarray
    labels: np.ndarray
    sources: str


@dataclass(frozen=True, eq=False)
class Stylized(ImageChange):
    """Each image is stylized at full strength in a style that is drawn for it.

    Attributes:
        stylize: The stylizer.
        textures: The styles to draw from.
        seed: The seed of the draws.
        number: Copies of different numbers are drawn independently.
        other_class: Whether styles of the image's own class are left out, so that the cues of shape and texture conflict.
        render_px: Smaller images are enlarged to this side, stylized and reduced again, so that brush strokes do not hide the few pixels of
            a small image.
    """

    stylize: StylizerConfig
    textures: Textures
    seed: int
    number: int = 0
    other_class: bool = False
    render_px: int = 0

    @property
    def key(self) -> str:
        digest = hashlib.sha256(self.textures.codes.tobytes() + self.textures.labels.tobytes()).hexdigest()
        which = "another class's style" if self.other_class else "any style"
        at = f" at {self.render_px} px" if self.render_px else ""
        how = f"{self.stylize.name} {self.stylize.model_dump_json()}{at}"
        return f"stylized by {how} in {which} of {digest}, seed {self.seed}, copy {self.number}"

    def styles(self, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        """(B,) int64: the row of the texture whose style each image gets.

        Raises:
            UsageError: all styles belong to an image's own class.
        """
        draws = DrawKey(self.seed, self.number, sample_id).uniform(Stream.STYLE, 1)[:, 0]
        if not self.other_class:
            return np.minimum((draws * len(self.textures.labels)).astype(np.int64), len(self.textures.labels) - 1)
        chosen = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            rows = np.flatnonzero(labels == label)
            others = np.flatnonzero(self.textures.labels != label)
            if not len(others):
                raise UsageError(f"all styles are of class {label}; a cue conflict needs a style of another class")
            chosen[rows] = others[np.minimum((draws[rows] * len(others)).astype(np.int64), len(others) - 1)]
        return chosen

    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        stylizer, device = _stylizer(self.stylize.name, self.stylize.model_dump_json())
        codes = self.textures.codes[self.styles(labels, sample_id)]
        size_px, render_px = images.shape[1], max(images.shape[1], self.render_px)

        def stylized(rows: np.ndarray) -> np.ndarray:
            # The layout decides the last bits of the result, and scores are compared with those of earlier runs.
            content = resized(to_float(images[rows], device).contiguous(), render_px)
            return to_uint8(resized(stylizer.render(content, torch.from_numpy(codes[rows]).to(device)), size_px))

        with torch.inference_mode():
            parts = Chunks(max(1, _PIXELS_AT_ONCE // render_px**2)).map(stylized, np.arange(len(images)))
        return np.concatenate([part for _, part in parts])


def textures_of(
    subject: Subject,
    part: LabeledFeatures,
    config: StylizerConfig,
    per_class: int,
    seed: int,
    bank: str | None,
    split: Split = "train",
) -> Textures:
    """The styles of some images of each class, or of a bank.

    Args:
        part: The images of the split that exist.
        per_class: Images of each class; all images of a class that has fewer.
        bank: Path or URI of a style bank, to use instead of images.

    Raises:
        UsageError: the stylizer's weights are not on this machine, or the bank belongs to another stylizer.
    """
    stylizer, device = _stylizer(config.name, config.model_dump_json())
    if bank is not None:
        codes = StyleBank.load(bank, stylizer.bundle_id).codes
        return Textures(codes, np.full(len(codes), -1), f"bank {bank}")
    rows = up_to_n_of_each(part.labels, per_class, np.random.default_rng(seed))
    images = subject.images(split, part.sample_id[rows])
    with torch.inference_mode():
        parts = Chunks(64).map(lambda chosen: stylizer.embed(to_float(images[chosen], device).contiguous()), np.arange(len(images)))
        codes = torch.cat([codes for _, codes in parts]).cpu().numpy()
    return Textures(codes, part.labels[rows], f"up to {per_class} {split} images of each class")


def resized(images: torch.Tensor, size_px: int) -> torch.Tensor:
    """(B, 3, size_px, size_px) of images (B, 3, S, S) in [0, 1], antialiased if smaller."""
    if images.shape[-1] == size_px:
        return images
    return functional.interpolate(images, size=(size_px, size_px), mode="bicubic", antialias=True).clamp(0, 1)


@lru_cache(maxsize=2)
def _stylizer(name: str, config_json: str) -> tuple[Stylizer, torch.device]:
    """The stylizer, built once per process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return load_plugin("ray_sassl.style.stylizers", name).Config.model_validate_json(config_json).build(device), device
