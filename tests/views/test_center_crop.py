import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from ray_sassl.views.center_crop import EvaluationView


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(500, 375), (375, 500), (256, 256), (333, 500), (255, 341), (257, 1001), *rng.integers(60, 520, (34, 2)).tolist()]
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "shorter_px"), [("auto", 256), ("center", 256), ("shorter_side", 224)])
def test_the_view_is_torchvisions_to_the_bit(images, crop, shorter_px, interpolation):
    reference = Compose([Resize(shorter_px, InterpolationMode(interpolation)), CenterCrop(224)])
    view = EvaluationView(224, crop, interpolation)
    for image in images:
        np.testing.assert_array_equal(np.asarray(view.of(image)), np.asarray(reference(image)), str(image.size))


def test_a_square_image_loses_its_edges_only_by_the_crop_that_cuts_them():
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[[0, -1]] = pixels[:, [0, -1]] = 255
    edges = {
        crop: np.asarray(EvaluationView(224, crop).of(Image.fromarray(pixels)))[0].max() for crop in ("center", "shorter_side", "none")
    }
    assert edges == {"center": 0, "shorter_side": 255, "none": 255}


def test_small_views_are_whole_images_unless_a_crop_is_asked_for():
    wide = Image.fromarray(np.zeros((40, 120, 3), np.uint8))
    assert EvaluationView(32).shorter_px is None
    assert EvaluationView(32, "shorter_side").shorter_px == 32
    assert EvaluationView(32).of(wide).size == EvaluationView(32, "shorter_side").of(wide).size == (32, 32)


def test_views_say_what_they_are():
    assert str(EvaluationView(224)) == "resized to 256 px on the shorter side (bilinear) and cropped to the middle 224 px"
    assert str(EvaluationView(32, interpolation="bicubic")) == "resized to 32 x 32 px (bicubic)"
