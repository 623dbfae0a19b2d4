from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sassl.style.augment import blend
from ray_sassl.style.stylizers.fda import Config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def photos(shared_dir) -> torch.Tensor:
    """(4, 3, 48, 40) float32."""
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:4]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((40, 48))) for path in paths])
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def _reference(content: np.ndarray, style: np.ndarray, cycles: int, share: float = 1.0) -> np.ndarray:
    """The paper's equations 3 and 4 on (3, H, W) float64, in NumPy's order of frequencies: amplitudes in the window are replaced."""
    spectra = [np.fft.fftshift(np.fft.fft2(image), axes=(1, 2)) for image in (content, style)]
    amplitude, phase = np.abs(spectra[0]), np.angle(spectra[0])
    rows, columns = (slice(side // 2 - cycles, side // 2 + cycles + 1) for side in content.shape[1:])
    amplitude[:, rows, columns] = (1 - share) * amplitude[:, rows, columns] + share * np.abs(spectra[1])[:, rows, columns]
    mixed = np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase), axes=(1, 2)))
    np.testing.assert_allclose(mixed.imag, 0, atol=1e-9)
    return np.clip(mixed.real, 0, 1)


@pytest.mark.parametrize("cycles", [0, 1, 4])
@pytest.mark.parametrize("share", [1.0, 0.3])
def test_amplitudes_are_mixed_as_in_the_papers(photos, cycles, share):
    stylizer, n = Config(cycles=cycles).build(CPU), len(photos)
    z_c = stylizer.embed(photos)
    mixed = blend(stylizer, photos, z_c, z_c.roll(1, 0), torch.full((n,), share), torch.ones(n))
    for row in range(n):
        expected = _reference(photos[row].double().numpy(), photos[row - 1].double().numpy(), cycles, share)
        np.testing.assert_allclose(mixed[row].numpy(), expected, atol=2e-6)


def test_an_images_own_code_gives_the_image_back(photos):
    stylizer = Config().build(CPU)
    torch.testing.assert_close(stylizer.render(photos, stylizer.embed(photos)), photos, atol=1e-6, rtol=0)


def test_the_code_of_an_image_is_the_same_at_any_resolution():
    def waves(height: int, width: int) -> torch.Tensor:
        y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
        image = 0.5 + 0.2 * torch.cos(2 * torch.pi * (x + 2 * y)) + 0.1 * torch.sin(2 * torch.pi * (2 * x - y))
        return image.expand(1, 3, -1, -1)

    stylizer = Config().build(CPU)
    torch.testing.assert_close(stylizer.embed(waves(16, 20)), stylizer.embed(waves(64, 33)), atol=1e-6, rtol=0)


def test_windows_of_other_widths_are_other_code_spaces(photos):
    narrow, wide = (Config(cycles=cycles).build(CPU) for cycles in (1, 2))
    assert narrow.bundle_id != wide.bundle_id
    assert (narrow.code_size, wide.code_size) == (3 * 3 * 2, 3 * 5 * 3)
    style = torch.tensor([0.9, 0.1, 0.4]).view(1, 3, 1, 1).expand(4, 3, 48, 40)
    shifted = Config(cycles=0).build(CPU).render(photos, Config(cycles=0).build(CPU).embed(style))
    assert not torch.equal(shifted, photos)  # mean colors alone
