"""The views of the papers: every number is a config field with its source.

SimCLR: Chen et al. 2020, arXiv 2002.05709. MoCo v2: Chen et al. 2020, arXiv 2003.04297. BYOL: Grill et al. 2020, arXiv 2006.07733.
SwAV: Caron et al. 2020, arXiv 2006.09882. DINO: Caron et al. 2021, arXiv 2104.14294. Asymmetric views: below.
Each recipe has a large form (ImageNet, 224 px) and a small form without blur (CIFAR, 32 px). This module imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ray_sassl.plugins import ROUNDING, FrozenConfig, did_you_mean
from ray_sassl.process.errors import UsageError
from ray_sassl.views.keyed import MAX_VIEWS

SMALL_FORM_MAX_PX = 64
"""Images up to this size get the small form of a recipe."""

Colors = Literal["torchvision", "simclr", "byol"]
Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]


def ordered(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval, checked to start with its smaller end; a pydantic validator."""
    if interval[0] > interval[1]:
        raise ValueError(f"({interval[0]}, {interval[1]}) must be (smallest, largest); write ({interval[1]}, {interval[0]})")
    return interval


def _odd(kernel_px: int) -> int:
    if kernel_px % 2 == 0:
        raise ValueError(f"{kernel_px} px has no center; use an odd number such as {kernel_px + 1}")
    return kernel_px


PositiveInterval = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], AfterValidator(ordered)]


class ViewConfig(FrozenConfig):
    """How one view is made; the defaults are SimCLR's for ImageNet (appendix A)."""

    crop_scale: PositiveInterval = (0.08, 1.0)
    """Share of the image's area that is kept, uniform in this interval."""
    crop_ratio: PositiveInterval = (3 / 4, 4 / 3)
    """Width over height of the crop, log-uniform in this interval."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """The filter for resizing the crop; bicubic as in SimCLR's published code."""
    antialias: bool = True
    """Whether the filter grows with the crop, as in Pillow and torchvision. Without it each pixel is interpolated from the two or four
    nearest rows and columns, as in the TensorFlow code of SimCLR and BYOL."""
    flip_prob: Probability = 0.5
    """Chance of a horizontal flip."""
    colors: Colors = "torchvision"
    """Whose color operations. `simclr`, as in its TensorFlow code: contrast about the mean of each channel and not of their gray,
    saturation in HSV, and blur with black beyond the border instead of a mirrored image. `byol`, as in its JAX code: so too, and brightness
    is added, not multiplied."""
    jitter_prob: Probability = 0.8
    """Chance that the four jitter operations are applied, in a random order for each sample."""
    brightness: Strength = 0.8
    """Factor is uniform in [max(0, 1 - b), 1 + b]; with `colors=byol` a summand in [-b, b] of images in [0, 1]."""
    contrast: Strength = 0.8
    """Factor is uniform in [max(0, 1 - c), 1 + c]."""
    saturation: Strength = 0.8
    """Factor is uniform in [max(0, 1 - s), 1 + s]."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    """Shift is uniform in [-h, h] turns of the color circle."""
    grayscale_prob: Probability = 0.2
    """Chance that the colors are dropped."""
    blur_prob: Probability = 0.5
    """Chance of a Gaussian blur."""
    blur_sigma: PositiveInterval = (0.1, 2.0)
    """Standard deviation of the blur in pixels, uniform in this interval."""
    blur_kernel_px: Annotated[int, Field(ge=1), AfterValidator(_odd)] = 23
    """Width of the blur window, odd; a tenth of the image."""
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
    """A pair of views and, for multi-crop, local crops. The name of a recipe (`"simclr_32"`) is accepted instead of this config."""

    size_px: Annotated[int, Field(ge=4)]
    """Side of the square views left and right, in pixels."""
    left: ViewConfig
    """The view that style augmentation stylizes by default."""
    right: ViewConfig
    num_small: Annotated[int, Field(ge=0, le=MAX_VIEWS - 2)] = 0
    """Number of local crops of each image, for methods that use them (multi-crop; SwAV, section 3.2)."""
    small_px: Annotated[int, Field(ge=4)] = 96
    """Side of the local crops, in pixels."""
    small: ViewConfig = ViewConfig(crop_scale=(0.05, 0.14))
    """How each local crop is made; by default SimCLR's view with the crop sizes of SwAV."""
    resizing: Annotated[Literal["auto", "fast", "pillow"], ROUNDING] = "auto"
    """What cuts out the crops. `fast`: vector instructions, within a gray level of Pillow but for rare pixels; large JPEGs are decoded at
    1/2, 1/4 or 1/8 of their size where each crop keeps twice the view's pixels. `pillow`: to the bit as torchvision does on Pillow images.
    `auto`: `fast` for a new run, and for a resumed one what it was begun with."""
    backend: Literal["auto", "opencv", "torch"] = "auto"
    """What changes the colors: `opencv` image by image on CPUs without torch, `torch` in batches on any device, `auto` the faster one."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in RECIPES:
            raise UsageError(f"views has no recipe {value!r}{did_you_mean(value, RECIPES)}. Known: {', '.join(RECIPES)}.")
        return RECIPES[value].model_dump()

    @model_validator(mode="after")
    def _local_crops_make_sense(self) -> Self:
        changed = [name for name in ("small_px", "small") if getattr(self, name) != type(self).model_fields[name].default]
        if self.num_small == 0 and changed:
            raise ValueError(
                f"{' and '.join(changed)} have no effect with num_small=0; set num_small, or use a recipe without local crops, such as "
                "'simclr_224'"
            )
        if self.num_small and self.small_px > self.size_px:
            raise ValueError(
                f"small_px={self.small_px} makes the local crops larger than the other views (size_px={self.size_px}); make it smaller"
            )
        return self

    @property
    def views(self) -> tuple[ViewConfig, ...]:
        """The view configs by number: 0 is left, 1 is right, local crops follow."""
        return self.left, self.right, *[self.small] * self.num_small

    @property
    def sizes_px(self) -> tuple[int, ...]:
        """The side of each view by number."""
        return self.size_px, self.size_px, *[self.small_px] * self.num_small

    @property
    def names(self) -> tuple[str, ...]:
        """The display name of each view by number."""
        return "left", "right", *(f"small {number}" for number in range(1, self.num_small + 1))

    @property
    def chosen_resizing(self) -> Literal["fast", "pillow"]:
        """What cuts out the crops of a new run."""
        return "pillow" if self.resizing == "pillow" else "fast"

    def backend_on(self, device_type: str) -> Literal["opencv", "torch"]:
        """The backend for `cpu` or `cuda`: the configured one, or for `auto` the faster one there."""
        if self.backend == "auto":
            return "opencv" if device_type == "cpu" else "torch"
        return self.backend


def simclr(size_px: int) -> ViewsConfig:
    """SimCLR: appendix A with color strength 1; small images as in appendix B.9, with strength 0.5 and no blur."""
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


def swav(size_px: int) -> ViewsConfig:
    """SwAV: two large views and six local crops, as in its published code, with SimCLR's colors and blur.

    The paper has no CIFAR form: here, the same crops with color strength 0.5 and no blur, as in SimCLR's form for CIFAR.
    """
    large = simclr(size_px).left.model_copy(update={"crop_scale": (0.14, 1.0), "interpolation": "bilinear"})
    return ViewsConfig(
        size_px=size_px,
        left=large,
        right=large,
        num_small=6,
        small_px=_small_px(size_px),
        small=large.model_copy(update={"crop_scale": (0.05, 0.14)}),
    )


def dino(size_px: int) -> ViewsConfig:
    """DINO: two large views and eight local crops, as in its published code, with BYOL's colors; local crops of small images have 16 px.

    Its code advises crops from 0.14 to 1 and from 0.05 to 0.14 for ResNets. The paper has no CIFAR form: here, the same without blur.
    """
    pair = byol(size_px)
    left, right = (view.model_copy(update={"crop_scale": (0.4, 1.0)}) for view in pair.views)
    blur_prob = 0.0 if _is_small(size_px) else 0.5
    small = pair.left.model_copy(update={"crop_scale": (0.05, 0.4), "blur_prob": blur_prob})
    return ViewsConfig(size_px=size_px, left=left, right=right, num_small=8, small_px=_small_px(size_px), small=small)


def lejepa(size_px: int) -> ViewsConfig:
    """LeJEPA: two large views and six local crops (98 px at 224), all with the same colors, as its official code's README gives them.

    The paper has no CIFAR form: here, the same without blur.
    """
    large = byol(size_px).right.model_copy(update={"crop_scale": (0.3, 1.0), "blur_prob": 0.0 if _is_small(size_px) else 0.5})
    small = large.model_copy(update={"crop_scale": (0.05, 0.3)})
    small_px = 98 if size_px == 224 else _small_px(size_px)
    return ViewsConfig(size_px=size_px, left=large, right=large, num_small=6, small_px=small_px, small=small)


def symmetric(size_px: int) -> ViewsConfig:
    """Two views of equal strength: MoCo v2's. The other two recipes change one side of it.

    Zhang et al. 2024 (arXiv 2410.12396) find that feature augmentation helps most with asymmetric strong views, and the public texts do not
    say which views these are. All three are our choice. By default, style augmentation stylizes the left view, which is the stronger one.
    """
    return moco_v2(size_px)


def asymmetric_weak(size_px: int) -> ViewsConfig:
    """`symmetric` with a right view that is only cropped and flipped."""
    return with_weak_right(symmetric(size_px))


def asymmetric_strong(size_px: int) -> ViewsConfig:
    """`symmetric` with a left view of twice the color jitter, and solarization."""
    return with_strong_left(symmetric(size_px))


def with_weak_right(views: ViewsConfig) -> ViewsConfig:
    """The views with a right view that keeps its natural colors: a crop of at least a fifth of the image, flipped at random.

    The weak form of Koohpayegani et al. 2021 (arXiv 2105.07269) makes its targets, whose nearest neighbors it searches, this way. Wang et
    al. 2022 (arXiv 2204.00613) find that targets should vary less than what is compared with them.
    """
    crop_scale = (max(0.2, views.right.crop_scale[0]), max(0.2, views.right.crop_scale[1]))
    return views.model_copy(update={"right": views.right.model_copy(update={"crop_scale": crop_scale, **dict.fromkeys(_COLOR_PROBS, 0.0)})})


def with_strong_left(views: ViewsConfig) -> ViewsConfig:
    """The views with a left view of at least color strength 1 (SimCLR, appendix A), solarized with BYOL's probability (0.2)."""
    strongest = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2, "solarize_prob": 0.2}
    stronger = {name: max(value, getattr(views.left, name)) for name, value in strongest.items()}
    return views.model_copy(update={"left": views.left.model_copy(update=stronger)})


_COLOR_PROBS = ("jitter_prob", "grayscale_prob", "blur_prob", "solarize_prob")


def _is_small(size_px: int) -> bool:
    return size_px <= SMALL_FORM_MAX_PX


def _tenth(size_px: int) -> int:
    """A tenth of the image, made odd as in SimCLR's code: 23 at 224 px."""
    return 2 * (size_px // 10 // 2) + 1


def _small_px(size_px: int) -> int:
    """The side of local crops: 96 for 224 px as in the papers, 16 for 32 px; a multiple of 8, for networks that halve it three times."""
    return max(8, 8 * round(size_px * 96 / 224 / 8))


_RECIPES = (simclr, moco_v2, byol, swav, dino, lejepa, symmetric, asymmetric_weak, asymmetric_strong)
RECIPES: dict[str, ViewsConfig] = {f"{recipe.__name__}_{size_px}": recipe(size_px) for recipe in _RECIPES for size_px in (224, 32)}
"""The recipes by name: `simclr_224`, `simclr_32`, `moco_v2_224`, ..."""


def recipe_named(name: str, size_px: int) -> ViewsConfig:
    """The recipe `simclr`, `moco_v2`, `byol`, ... at any size."""
    return next(recipe for recipe in _RECIPES if recipe.__name__ == name)(size_px)
