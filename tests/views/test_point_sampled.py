import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ray_sassl.views.crop import crop
from ray_sassl.views.draw import ViewParams
from ray_sassl.views.point_sampled import PointSampled, taps

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def _resized(image: np.ndarray, size_px: int, interpolation) -> np.ndarray:
    view = np.empty((size_px, size_px, 3), np.uint8)
    PointSampled(size_px, interpolation)(image, (0, 0, image.shape[1], image.shape[0]), False, view)
    return view


@pytest.mark.parametrize("size_px", [16, 224])
def test_bilinear_is_torchs_without_antialiasing(size_px):
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].double()
    expected = F.interpolate(pixels, size=(size_px, size_px), mode="bilinear", antialias=False)[0].permute(1, 2, 0).numpy()
    assert np.abs(_resized(IMAGE, size_px, "bilinear") - expected).max() <= 0.501


def test_bicubic_is_pillows_where_the_image_grows():
    gray = IMAGE // 4 + 96  # Pillow cuts off what is beyond black and white between its two passes
    expected = np.asarray(Image.fromarray(gray).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(_resized(gray, 224, "bicubic") - expected).max() <= 1


def test_a_shrunk_image_skips_the_pixels_between_its_taps():
    places, weights = taps(100, 10, "bicubic")
    assert places[0].tolist() == [3, 4, 5, 6]
    assert weights[0].tolist() == pytest.approx([-1 / 16, 9 / 16, 9 / 16, -1 / 16])
    lines = np.zeros((100, 100, 3), np.uint8)
    lines[::10] = 255  # rows that no tap touches
    assert _resized(lines, 10, "bicubic").max() == 0
    assert np.asarray(Image.fromarray(lines).resize((10, 10), Image.Resampling.BICUBIC)).max() > 0


def test_crops_without_antialiasing_cut_and_mirror_like_the_others():
    one = np.ones(1)
    params = ViewParams(
        top=np.array([10]), left=np.array([20]), height=np.array([30]), width=np.array([40]), flip=np.array([True]),
        jitter=one > 2, brightness=one, contrast=one, saturation=one, hue=one, order=np.zeros((1, 4), np.int8), grayscale=one > 2,
        blur_sigma=one, solarize=one > 2, blur_kernel_px=1, solarize_threshold=0.5,
    )  # fmt: skip
    found = crop([IMAGE], params, 16, "bicubic", antialias=False)[0]
    np.testing.assert_array_equal(found, _resized(IMAGE[10:40, 20:60], 16, "bicubic")[:, ::-1])
