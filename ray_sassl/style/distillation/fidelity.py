"""How close a student is to its teacher, on images that neither was trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.style.stylizers import Stylizer

_LUMINANCE = (0.299, 0.587, 0.114)
_AT_ONCE_PIXELS = 32 * 224 * 224


@dataclass(frozen=True)
class Fidelity:
    """Means over all pairs of contents and styles, stylized at full strength.

    Attributes:
        difference: Mean absolute difference between the student's and the teacher's pictures.
        color, teacher_color: Mean absolute difference, over the channels, between a picture's mean color and its style's.
        ssim, teacher_ssim: Structural similarity between the luminance of pictures and contents.
    """

    difference: float
    color: float
    teacher_color: float
    ssim: float
    teacher_ssim: float


@torch.inference_mode()
def fidelity(student: Stylizer, teacher: Stylizer, contents: Tensor, styles: Tensor) -> Fidelity:
    """Measure every content in every style.

    Args:
        student, teacher: Each embeds and renders with its own codes.
        contents: (N, 3, H, W) float in [0, 1].
        styles: (M, 3, S, S) float in [0, 1].
    """
    student_codes, teacher_codes = student.embed(styles), teacher.embed(styles)
    colors = styles.mean(dim=(2, 3))
    sums = torch.zeros(5, dtype=torch.float64)
    at_once = max(1, _AT_ONCE_PIXELS // (contents.shape[2] * contents.shape[3]))
    for part in contents.split(at_once):
        gray = luminance(part)
        for mine, theirs, color in zip(student_codes, teacher_codes, colors, strict=True):
            pictures = student.render(part, mine.expand(len(part), -1)), teacher.render(part, theirs.expand(len(part), -1))
            values = [
                (pictures[0] - pictures[1]).abs().mean(),
                *((picture.mean(dim=(2, 3)) - color).abs().mean() for picture in pictures),
                *(ssim(luminance(picture), gray).mean() for picture in pictures),
            ]
            sums += torch.stack(values).double().cpu() * len(part)
    return Fidelity(*(sums / (len(contents) * len(styles))).tolist())


def luminance(images: Tensor) -> Tensor:
    """(B, 1, H, W) of RGB (B, 3, H, W), weights of ITU-R BT.601."""
    return (images * images.new_tensor(_LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """(B,) structural similarity of (B, 1, H, W) images in [0, 1]: Wang, Bovik, Sheikh and Simoncelli 2004, equation 13.

    Gaussian window of 11 pixels with a standard deviation of 1.5, K1 = 0.01 and K2 = 0.03, mean over the places where the window fits.
    """
    window = torch.exp(-((torch.arange(11, device=x.device, dtype=x.dtype) - 5) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def mean(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, window[None, None, :, None]), window[None, None, None, :])

    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y, cov = (mean(x * x) - mean_x**2, mean(y * y) - mean_y**2, mean(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean(dim=(1, 2, 3))
