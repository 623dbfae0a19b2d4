"""Distilling a small stylizer from a large one: what `ray-sassl stylize distill` trains, without Ray.

The teacher is frozen. The student's transformer learns from the teacher's pictures (not from its weights or features), in the teacher's code
space: contents repainted with codes and with mixtures of codes. The student's predictor learns the codes' effect, that is the scales and
shifts that a code gives to the teacher's instance norms, and at last both learn from the pictures that they make together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index, read_groups
from ray_sassl.data.quarantine import BadRow
from ray_sassl.nn.style_network import SmallPredictor, StyleTransformer
from ray_sassl.plugins import FrozenConfig, UsageError
from ray_sassl.stylize.network_pair import resized

CROP_PX = 96
"""Side of the stored crops, and of the largest contents."""
TEACHER_PX = 256
STUDENT_PX = 64
"""Side of the images that the student's predictor sees."""


class DistillConfig(FrozenConfig):
    """The student's training."""

    num_crops: int = Field(default=12_000, ge=64)
    """Crops whose codes the teacher computes once; half of them of styles, half of contents."""
    steps: int = Field(default=12_000, ge=1)
    batch_size: int = Field(default=16, ge=2)
    learning_rate: float = Field(default=3e-3, gt=0)
    warmup_steps: int = Field(default=200, ge=1)
    end_to_end_from: float = Field(default=0.5, ge=0, le=1)
    """Share of the training after which half of each batch is repainted with the student's own codes."""
    sizes_px: tuple[int, ...] = (32, 64, 64, 96)
    """Sides of the contents, one after the other; multiples of 4, at most 96."""
    full_strength_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the pictures made at alpha = 1; the others have alpha uniform in [0, 1]."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Of the averaged weights, which are the result."""
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Crops:
    """Augmented crops with the teacher's codes.

    Attributes:
        images: (N, 96, 96, 3) uint8.
        codes: (N, C) float32, computed at 256 px.
        is_style: (N,) bool, whether the crop is of a style image.
    """

    images: np.ndarray
    codes: np.ndarray
    is_style: np.ndarray


class Student(nn.Module):
    """Predictor and transformer."""

    def __init__(self, code_size: int) -> None:
        super().__init__()
        self.predictor = SmallPredictor(code_size)
        self.transformer = StyleTransformer(code_size)
        with torch.no_grad():  # at first every instance norm is a plain one
            for head, value in ((self.transformer.gamma, 1.0), (self.transformer.beta, 0.0)):
                head.weight.mul_(0.2)
                head.bias.fill_(value)

    def forward(self, contents: Tensor, codes: Tensor, styles: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Repainted contents, with the teacher's `codes` or (where `styles` are given) with the predictor's, and the latter."""
        predicted = None if styles is None else self.predictor(styles)
        return self.transformer(contents, codes), predicted


def make_crops(
    teacher: nn.Module, contents: list[Index], styles: list[Index], config: DistillConfig, held_out: frozenset[str] = frozenset()
) -> Iterator[tuple[Crops, int]]:
    """Parts of the crops, with how many are there in all; each part is one image's row group.

    Args:
        teacher: The predictor, (B, 3, 256, 256) -> (B, C).
        held_out: Endings of keys of rows that are left out.

    Raises:
        UsageError: a data set holds no image that can be used.
    """
    rng = np.random.default_rng(config.seed)
    for indexes, is_style in ((styles, True), (contents, False)):
        total = config.num_crops // 2
        for number, index in enumerate(indexes):
            share = total // len(indexes) + (number < total % len(indexes))
            yield from _crops_of(teacher, index, share, is_style, held_out, rng)


def _crops_of(
    teacher: nn.Module, index: Index, count: int, is_style: bool, held_out: frozenset[str], rng: np.random.Generator
) -> Iterator[tuple[Crops, int]]:
    groups = rng.permutation(np.flatnonzero(index.group_rows))
    per_group = math.ceil(count / len(groups))
    made = 0
    for group in groups:
        rows = read_groups(index, [int(group)])
        images = [
            image
            for key, image in zip(rows.key, decode_rows(rows, index.config.max_pixels), strict=True)
            if not isinstance(image, BadRow) and not key.endswith(tuple(held_out))
        ]
        if not images:
            continue
        take = min(per_group, count - made)
        large = np.stack([_augmented_crop(np.asarray(images[int(rng.integers(len(images)))]), rng) for _ in range(take)]) if take else None
        if large is None:
            return
        pixels = torch.from_numpy(large).permute(0, 3, 1, 2).float().div_(255)
        with torch.inference_mode():
            codes = torch.cat([teacher(part.contiguous(memory_format=torch.channels_last)) for part in pixels.split(16)]).float()
            small = resized(pixels, CROP_PX).mul_(255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)
        made += take
        yield Crops(small.numpy(), codes.numpy(), np.full(take, is_style)), take
    if not made:
        raise UsageError(f"{index.config.path} holds no image that can be used")


def _augmented_crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(256, 256, 3) uint8: a random square of the image, perhaps flipped, with its colours changed."""
    import cv2

    height, width = image.shape[:2]
    side = max(8, round(min(height, width) * math.sqrt(rng.uniform(0.15, 1.0)) if min(height, width) > 64 else min(height, width)))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = image[top : top + side, left : left + side]
    shrink = cv2.INTER_AREA if side > TEACHER_PX else cv2.INTER_LINEAR
    crop = cv2.resize(crop, (TEACHER_PX, TEACHER_PX), interpolation=shrink)
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.6:
        crop = _other_colours(crop, rng)
    return np.ascontiguousarray(crop)


def _other_colours(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Channels mixed, scaled, shifted and bent a little."""
    pixels = image.astype(np.float32) / 255
    mixing = np.eye(3) + rng.normal(0, 0.25, (3, 3))
    if rng.random() < 0.3:
        mixing = mixing[rng.permutation(3)]
    pixels = (pixels - 0.5) @ mixing.T.astype(np.float32) * rng.uniform(0.6, 1.2) + 0.5 + rng.uniform(-0.15, 0.15)
    pixels = pixels.clip(0, 1) ** rng.uniform(0.7, 1.4)
    return (pixels * 255).round().astype(np.uint8)


@dataclass(frozen=True)
class Targets:
    """One step's batch.

    Attributes:
        contents: (B, 3, S, S) float in [0, 1].
        codes: (B, C), mixtures of the teacher's codes.
        style_images: (2B, 3, 64, 64), what the codes were computed from: the contents' own crops, then the styles'.
        style_codes: (2B, C), the teacher's codes of these.
        alpha: (B,), share of the style's code in the mixture.
        pictures: (B, 3, S, S), the teacher's.
    """

    contents: Tensor
    codes: Tensor
    style_images: Tensor
    style_codes: Tensor
    alpha: Tensor
    pictures: Tensor


def draw_targets(crops: Crops, teacher: nn.Module, config: DistillConfig, step: int, rank: int = 0) -> Targets:
    """The batch of a step, which follows from (seed, step, rank) alone.

    Args:
        teacher: The transformer.
    """
    rng = np.random.default_rng([config.seed, step, rank, 1])
    count = config.batch_size
    at_style = rng.random(count) < 0.6
    pools = np.flatnonzero(crops.is_style), np.arange(len(crops.is_style))
    style = np.where(at_style, rng.choice(pools[0], count), rng.choice(pools[1], count))
    content_pool = np.flatnonzero(~crops.is_style) if rng.random() < 0.8 else pools[1]
    content = rng.choice(content_pool, count)
    alpha = torch.from_numpy(np.where(rng.random(count) < config.full_strength_share, 1.0, rng.random(count))).float()
    both = np.concatenate([content, style])
    codes = torch.from_numpy(crops.codes[both])
    images = torch.from_numpy(crops.images[both]).permute(0, 3, 1, 2).float().div_(255)
    contents = resized(images[:count], config.sizes_px[step % len(config.sizes_px)])
    mixed = torch.lerp(codes[:count], codes[count:], alpha[:, None])
    with torch.no_grad():
        pictures = teacher(contents, mixed)
    return Targets(contents, mixed, resized(images, STUDENT_PX), codes, alpha, pictures)


def distillation_loss(
    student: nn.Module, teacher: StyleTransformer, targets: Targets, is_end_to_end: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one batch, and its parts."""
    count = len(targets.contents)
    predicted = student.predictor(targets.style_images)  # type: ignore[operator]
    # A code matters by what it does to the instance norms.
    difference = predicted - targets.style_codes
    effect = F.linear(difference, teacher.gamma.weight).square().mean() + F.linear(difference, teacher.beta.weight).square().mean()
    codes = targets.codes
    if is_end_to_end:
        own = torch.lerp(predicted[:count], predicted[count:], targets.alpha[:, None])
        codes = torch.where((torch.arange(count) % 2 == 0)[:, None], own, codes)
    pictures = student.transformer(targets.contents, codes)  # type: ignore[operator]
    pixels = (pictures - targets.pictures).abs().mean()
    edges = sum((pictures.diff(dim=axis) - targets.pictures.diff(dim=axis)).abs().mean() for axis in (2, 3))
    coarse = (F.avg_pool2d(pictures, 8) - F.avg_pool2d(targets.pictures, 8)).abs().mean()
    loss = pixels + 0.5 * edges + coarse + 0.2 * effect
    return loss, {"loss": loss.detach(), "pixels": pixels.detach(), "effect": effect.detach(), "coarse": coarse.detach()}


class Distiller:
    """The student in training: its weights, their average and the optimiser; all that a checkpoint holds.

    Args:
        teacher: The transformer, frozen.
    """

    def __init__(self, teacher: StyleTransformer, code_size: int, config: DistillConfig) -> None:
        torch.manual_seed(config.seed)
        self.config, self.teacher = config, teacher
        self.student = Student(code_size)
        self.average = Student(code_size).requires_grad_(False)
        self.average.load_state_dict(self.student.state_dict())
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.step = 0

    def train_step(self, crops: Crops, rank: int = 0, average_gradients: object = None) -> dict[str, Tensor]:
        """One optimiser step; returns the loss and its parts.

        Args:
            average_gradients: Called before the update, where several workers share the training.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(self.step, config)
        targets = draw_targets(crops, self.teacher, config, self.step, rank)
        loss, parts = distillation_loss(self.student, self.teacher, targets, self.step >= config.end_to_end_from * config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if callable(average_gradients):
            average_gradients(self.student)
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(config.ema, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.student.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        return parts

    def state_dict(self) -> dict:
        return {
            "student": self.student.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict) -> None:
        self.student.load_state_dict(state["student"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]


def _schedule(step: int, config: DistillConfig) -> float:
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)))
