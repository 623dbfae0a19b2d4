from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_sassl.style.distillation.fidelity import fidelity, luminance, ssim
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.style.stylizers.identity import Config as Identity

CPU = torch.device("cpu")


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_ssim_is_the_papers_equation_at_every_place():
    x, y = (torch.rand(1, 1, 13, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    ring = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    window = np.outer(ring, ring) / np.outer(ring, ring).sum()
    values = []
    for top in range(3):
        for left in range(2):
            a, b = (image[0, 0, top : top + 11, left : left + 11].numpy() for image in (x, y))
            mean_a, mean_b = (window * a).sum(), (window * b).sum()
            var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
            cov = (window * (a - mean_a) * (b - mean_b)).sum()
            values.append((2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert ssim(x, y).item() == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_of_an_image_to_itself_is_one():
    x = luminance(_images(2, 0))
    torch.testing.assert_close(ssim(x, x), torch.ones(2), atol=1e-5, rtol=0)


def test_a_stylizer_is_true_to_itself():
    stylizer = ColorStatistics().build(CPU)
    found = fidelity(stylizer, stylizer, _images(3, 0), _images(2, 1))
    assert found.difference == 0
    assert found.color == found.teacher_color
    assert found.ssim == found.teacher_ssim


def test_figures_are_means_over_all_pairs():
    student, teacher = Identity().build(CPU), ColorStatistics().build(CPU)
    contents, styles = _images(3, 0) * 0.5, _images(2, 1)
    found = fidelity(student, teacher, contents, styles)
    pairs = [(content[None], style[None]) for content in contents for style in styles]
    stylized = [teacher.render(content, teacher.embed(style)) for content, style in pairs]
    differences = [(content - picture).abs().mean() for (content, _), picture in zip(pairs, stylized, strict=True)]
    colors = [(content.mean(dim=(2, 3)) - style.mean(dim=(2, 3))).abs().mean() for content, style in pairs]
    assert found.difference == pytest.approx(torch.stack(differences).mean().item(), abs=1e-6)
    assert found.color == pytest.approx(torch.stack(colors).mean().item(), abs=1e-6)
    assert found.teacher_color < 0.02
    assert found.ssim == pytest.approx(1, abs=1e-5)
