"""How strong a run's augmentations are, measured on its own crops: style beside jitter, blur and what else changes colors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.nn.pixels import to_float
from ray_sassl.pipeline import CropBlock
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.dose import STYLE, Dose
from ray_sassl.runs.process import build_style_augmentation
from ray_sassl.style.augment import StyleAugmentation
from ray_sassl.style.dose import STRENGTHS, Curve, change_of, interval_at, rising, strength_for
from ray_sassl.views import opencv
from ray_sassl.views.draw import draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.recipes import ViewConfig

NUM_IMAGES = 64
"""Images of the first block that the dose in a run directory is measured on."""
_COLORS = ("jitter", "grayscale", "blur", "solarize")
_JITTER = ("brightness", "contrast", "saturation", "hue")


def measure(config: ExperimentConfig, block: CropBlock, style: StyleAugmentation | None, num_images: int | None = None) -> list[Dose]:
    """The dose of each augmentation of each view; local crops are alike, so the first stands for all.

    Args:
        block: Crops of the config's views.
        style: The config's style augmentation, or None without one.
        num_images: Images of the block to measure on; by default all.
    """
    doses = []
    for number, view in enumerate(config.views.views[:3]):
        crops, key = _crops(config, block, number, num_images)
        name = config.views.names[number].partition(" ")[0]
        stylized = crops
        if style is not None and config.sassl.stylizes(number):
            doses.append(_of_style(name, crops, key, style))
            stylized = style.stylize(crops, key)
        for what, alone in _each_color_operation(view):
            change = change_of(crops, _colored(crops, alone, key))
            doses.append(Dose(name, what, getattr(view, f"{what}_prob"), change.pixels, change.ssim))
        change = change_of(crops, _colored(stylized, view, key))
        doses.append(Dose(name, "all together", 1.0, change.pixels, change.ssim))
    return doses


def style_curve(config: ExperimentConfig, block: CropBlock, style: StyleAugmentation, num_images: int | None = None) -> Curve:
    """The dose of style at each strength, on the first view that is stylized."""
    number = next(number for number in range(len(config.views.views)) if config.sassl.stylizes(number))
    crops, key = _crops(config, block, number, num_images)
    return rising([change_of(crops, _at(style, strength).stylize(crops, key)).pixels for strength in STRENGTHS])


def matched(config: ExperimentConfig, block: CropBlock, stylizer: str, pixels: float, num_images: int | None = None) -> list[str]:
    """The overrides that give the config this stylizer, and alpha and beta with which it changes pixels by so many gray levels.

    Raises:
        UsageError: it cannot change them so much, or its weights are missing.
    """
    other = apply_overrides(config, [f"stylize={stylizer}"])
    style = build_style_augmentation(other, "cpu", 1)
    if style is None:
        raise UsageError(f"stylize={stylizer} changes nothing, so it has no dose")
    interval = interval_at(round(strength_for(style_curve(other, block, style, num_images), pixels), 4))
    return [f"stylize={stylizer}", *(f"sassl.{name}={json.dumps(interval)}" for name in ("alpha", "beta"))]


def _of_style(name: str, crops: np.ndarray, key: DrawKey, style: StyleAugmentation) -> Dose:
    always = _with(style, prob=1.0)
    stylized = always.stylize(crops, key)
    change = change_of(crops, stylized)
    rebuilt = change_of(crops, _with(always, alpha=(0.0, 0.0)).stylize(crops, key))
    codes, moved = _embedder(style)(crops), _embedder(style)(stylized)
    apart = np.linalg.norm(codes - np.roll(codes, 1, axis=0), axis=1).mean()
    return Dose(
        name,
        STYLE,
        style.config.prob,
        change.pixels,
        change.ssim,
        float(np.linalg.norm(moved - codes, axis=1).mean() / apart) if apart else None,
        rebuilt.pixels / change.pixels if change.pixels else None,
    )


def _embedder(style: StyleAugmentation) -> Callable[[np.ndarray], np.ndarray]:
    @torch.inference_mode()
    def embed(images: np.ndarray) -> np.ndarray:
        return style.stylizer.embed(to_float(images, style.device)).cpu().numpy()

    return embed


def _at(style: StyleAugmentation, strength: float) -> StyleAugmentation:
    return _with(style, prob=1.0, alpha=interval_at(strength), beta=interval_at(strength))


def _with(style: StyleAugmentation, **changes: object) -> StyleAugmentation:
    return replace(style, config=style.config.model_copy(update=changes))


def _crops(config: ExperimentConfig, block: CropBlock, number: int, num_images: int | None) -> tuple[np.ndarray, DrawKey]:
    crops, ids = block.views[number][:num_images], block.sample_id[:num_images]
    return crops, DrawKey(config.seed, block.epoch, ids, number)


def _each_color_operation(view: ViewConfig) -> Iterator[tuple[str, ViewConfig]]:
    """The operations that the view has, and the view with each of them alone and always."""
    none = {f"{name}_prob": 0.0 for name in _COLORS}
    for name in _COLORS:
        if getattr(view, f"{name}_prob") and (name != "jitter" or any(getattr(view, strength) for strength in _JITTER)):
            yield name, view.model_copy(update=none | {f"{name}_prob": 1.0})


def _colored(crops: np.ndarray, view: ViewConfig, key: DrawKey) -> np.ndarray:
    return opencv.color(crops, draw(view, np.full((len(crops), 2), crops.shape[1], np.int64), key))
