from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from ray_sassl.style.stylizers.color_statistics import Config, monge_kantorovich

STYLIZER = Config(regularization=1e-6).build(torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(shared_dir) -> torch.Tensor:
    """(6, 3, 64, 64) float32: three photographs, three artworks."""
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:3]
    paths += sorted((shared_dir / "data/styles/styles").glob("*.jpg"))[:3]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((64, 64))) for path in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def reference(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    """The paper's closed form in float64 on pixels (N, 3): A^-1/2 (A^1/2 B A^1/2)^1/2 A^-1/2."""
    a, b = np.cov(content.T, bias=True), np.cov(style.T, bias=True)
    root = scipy.linalg.sqrtm(a).real
    inverse = np.linalg.inv(root)
    transport = inverse @ scipy.linalg.sqrtm(root @ b @ root).real @ inverse
    return np.clip((content - content.mean(axis=0)) @ transport.T + style.mean(axis=0), 0, 1)


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.double().flatten(1).T.numpy()


def test_rendering_equals_the_float64_closed_form(photos):
    styles = photos.roll(3, dims=0)
    rendered = STYLIZER.render(photos, STYLIZER.embed(styles))
    for row in range(len(photos)):
        expected = reference(pixels(photos[row]), pixels(styles[row]))
        np.testing.assert_allclose(pixels(rendered[row]), expected, atol=0.5 / 255)


def test_an_images_own_code_gives_the_image_back(photos):
    torch.testing.assert_close(STYLIZER.render(photos, STYLIZER.embed(photos)), photos, atol=1e-5, rtol=0)


def test_the_rendering_has_the_codes_mean_and_covariance_without_clamping(photos):
    content = 0.4 + 0.2 * photos
    codes = STYLIZER.embed(0.45 + 0.1 * photos.roll(3, dims=0))
    torch.testing.assert_close(STYLIZER.embed(STYLIZER.render(content, codes)), codes, atol=1e-5, rtol=0)


def test_the_map_is_symmetric_and_carries_one_covariance_to_the_other():
    generator = torch.Generator().manual_seed(0)
    content, style = (x @ x.mT + 1e-3 * torch.eye(3) for x in torch.rand(2, 50, 3, 3, generator=generator, dtype=torch.float64))
    transport = monge_kantorovich(content, style)
    torch.testing.assert_close(transport, transport.mT)
    torch.testing.assert_close(transport @ content @ transport, style)
    assert torch.linalg.eigvalsh(transport).min() > 0


def test_a_mixture_of_codes_is_a_valid_gaussian(photos):
    codes = STYLIZER.embed(photos)
    mixed = 0.7 * codes + 0.3 * codes.roll(1, dims=0)
    covariance = torch.empty(len(mixed), 3, 3)
    row, column = torch.triu_indices(3, 3)
    covariance[:, row, column] = covariance[:, column, row] = mixed[:, 3:]
    assert torch.linalg.eigvalsh(covariance).min() > -1e-7


def test_images_of_one_color_stay_finite_and_take_the_styles_mean(photos):
    plain = torch.full((1, 3, 16, 16), 0.25)
    codes = STYLIZER.embed(photos[:1])
    rendered = STYLIZER.render(plain, codes)
    torch.testing.assert_close(rendered.mean(dim=(2, 3)), codes[:, :3], atol=1e-4, rtol=0)
    back = Config().build(torch.device("cpu")).render(photos[:1], STYLIZER.embed(plain))
    assert torch.isfinite(back).all()
    assert back.std() < 0.05
