"""The view pairs of the papers: every number a config field, with its source.

SimCLR: Chen et al. 2020, arXiv 2002.05709. MoCo v2: Chen et al. 2020, arXiv 2003.04297. BYOL: Grill et al. 2020, arXiv 2006.07733.
Each recipe has a large form (ImageNet, 224 px) and a small form without blur (CIFAR, 32 px). This module imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ray_sassl.plugins import FrozenConfig, UsageError, did_you_mean

SMALL_FORM_MAX_PX = 64
"""Images up to this size get a recipe's small form."""

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


def ordered(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval, checked to begin at its smaller end; a pydantic validator."""
    if interval[0] > interval[1]:
        raise ValueError(f"({interval[0]}, {interval[1]}) must be (smallest, largest); write ({interval[1]}, {interval[0]})")
    return interval


def _odd(kernel_px: int) -> int:
    if kernel_px % 2 == 0:
        raise ValueError(f"{kernel_px} px has no centre; use an odd number such as {kernel_px + 1}")
    return kernel_px


PositiveInterval = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(ordered)]


class ViewConfig(FrozenConfig):
    """How one view is made; the defaults are SimCLR's for ImageNet (appendix A)."""

    crop_scale: PositiveInterval = (0.08, 1.0)
    """Share of the image's area that is kept, uniform in this interval."""
    crop_ratio: PositiveInterval = (3 / 4, 4 / 3)
    """Width over height of the crop, log-uniform in this interval."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Pillow's filter (with anti-aliasing) for resizing the crop; bicubic as in SimCLR's published code."""
    flip_prob: Probability = 0.5
    """Chance of a horizontal flip."""
    jitter_prob: Probability = 0.8
    """Chance that the four jitter operations are applied, in an order drawn anew for each sample."""
    brightness: Strength = 0.8
    """Factor is uniform in [max(0, 1 - b), 1 + b]."""
    contrast: Strength = 0.8
    """Factor is uniform in [max(0, 1 - c), 1 + c]."""
    saturation: Strength = 0.8
    """Factor is uniform in [max(0, 1 - s), 1 + s]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Shift is uniform in [-h, h] turns of the colour circle."""
    grayscale_prob: Probability = 0.2
    """Chance that the colours are dropped."""
    blur_prob: Probability = 0.5
    """Chance of a Gaussian blur."""
    blur_sigma: PositiveInterval = (0.1, 2.0)
    """Standard deviation of the blur in pixels, uniform in this interval."""
    blur_kernel_px: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 23
    """Width of the blur's window, odd; a tenth of the image."""
    solarize_prob: Probability = 0.0
    """Chance that pixels at or above the threshold are inverted."""
    solarize_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """In [0, 1]; BYOL's appendix B."""

    @model_validator(mode="after")
    def _crop_is_inside_the_image(self) -> ViewConfig:
        if self.crop_scale[1] > 1:
            raise ValueError(f"crop_scale keeps a share of the image's area and ends at 1, not {self.crop_scale[1]}")
        return self


class ViewsConfig(FrozenConfig):
    """A pair of views. The name of a recipe, such as `"simclr_32"`, is accepted wherever this config is."""

    size_px: Annotated[int, Field(ge=4)]
    """Side of the square views."""
    left: ViewConfig
    """The view that style augmentation repaints by default."""
    right: ViewConfig
    backend: Literal["auto", "opencv", "torch"] = "auto"
    """What changes the colours: `opencv` image by image on CPUs without torch, `torch` in batches on any device, `auto` the faster."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in RECIPES:
            raise UsageError(f"views has no recipe {value!r}{did_you_mean(value, RECIPES)}. Known: {', '.join(RECIPES)}.")
        return RECIPES[value].model_dump()

    @property
    def views(self) -> tuple[ViewConfig, ViewConfig]:
        """The view configs by number: 0 is left, 1 is right."""
        return self.left, self.right

    def backend_on(self, device_type: str) -> Literal["opencv", "torch"]:
        """The backend for `cpu` or `cuda`: as configured, or for `auto` the faster one there."""
        if self.backend == "auto":
            return "opencv" if device_type == "cpu" else "torch"
        return self.backend


def simclr(size_px: int) -> ViewsConfig:
    """SimCLR: appendix A with colour strength 1; small images as in appendix B.9, with strength 0.5 and no blur."""
    if _is_small(size_px):
        view = ViewConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur_prob=0.0)
    else:
        view = ViewConfig(blur_kernel_px=_tenth(size_px))
    return ViewsConfig(size_px=size_px, left=view, right=view)


def moco_v2(size_px: int) -> ViewsConfig:
    """MoCo v2: section 3 and its published ImageNet script; small images as in the authors' CIFAR-10 demo, which crops from 0.08."""
    small = _is_small(size_px)
    view = ViewConfig(
        crop_scale=(0.08, 1.0) if small else (0.2, 1.0),
        interpolation="bilinear",
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        blur_prob=0.0 if small else 0.5,
        blur_kernel_px=_tenth(size_px),
    )
    return ViewsConfig(size_px=size_px, left=view, right=view)


def byol(size_px: int) -> ViewsConfig:
    """BYOL: appendix B, table 6; the left view is its T, the right one its T'. The paper has no CIFAR form: here, the same without blur."""
    small = _is_small(size_px)
    left = ViewConfig(
        brightness=0.4,
        contrast=0.4,
        saturation=0.2,
        hue=0.1,
        blur_prob=0.0 if small else 1.0,
        blur_kernel_px=_tenth(size_px),
    )
    right = left.model_copy(update={"blur_prob": 0.0 if small else 0.1, "solarize_prob": 0.2})
    return ViewsConfig(size_px=size_px, left=left, right=right)


def _is_small(size_px: int) -> bool:
    return size_px <= SMALL_FORM_MAX_PX


def _tenth(size_px: int) -> int:
    """A tenth of the image, made odd as in SimCLR's code: 23 at 224 px."""
    return 2 * (size_px // 10 // 2) + 1


RECIPES: dict[str, ViewsConfig] = {
    f"{recipe.__name__}_{size_px}": recipe(size_px) for recipe in (simclr, moco_v2, byol) for size_px in (224, 32)
}
"""The recipes by name: `simclr_224`, `simclr_32`, `moco_v2_224`, ..."""
