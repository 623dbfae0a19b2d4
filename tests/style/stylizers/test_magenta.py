from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_sassl.process.errors import UsageError
from ray_sassl.style.networks.tflite import BadTfliteError
from ray_sassl.style.stylizers.magenta import PREDICTOR, TRANSFORMER, WEIGHTS, Config, convert

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def golden(shared_dir) -> dict[str, np.ndarray]:
    return dict(np.load(shared_dir / "stylizer" / "golden.npz"))


@pytest.fixture
def _weights(weights_cache, monkeypatch) -> None:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))


def _pixels(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.usefixtures("_weights")
def test_pictures_are_those_of_the_published_network(golden):
    stylizer = Config().build(CPU)
    codes = torch.from_numpy(golden["style_embeddings"])
    for (content, style), expected in zip(golden["pairs"], golden["stylized"], strict=True):
        picture = stylizer.render(_pixels(golden["content_images"][[content]]), codes[[style]])[0].permute(1, 2, 0)
        assert np.abs(picture.numpy() - expected).max() < 1e-3


@pytest.mark.usefixtures("_weights")
def test_codes_are_those_of_the_published_network(golden):
    codes = Config().build(CPU).embed(_pixels(golden["style_images"]))
    assert torch.cosine_similarity(codes, torch.from_numpy(golden["style_embeddings"])).min() > 0.997


@pytest.mark.usefixtures("_weights")
def test_codes_of_smaller_images_are_near(golden):
    images = _pixels(golden["style_images"])
    near = torch.cosine_similarity(Config(style_px=96).build(CPU).embed(images), Config().build(CPU).embed(images))
    assert 0.93 < near.min() < near.max() < 0.99


@pytest.mark.usefixtures("_weights")
def test_a_batch_equals_its_images_one_by_one(golden):
    stylizer = Config(style_px=64).build(CPU)
    images = _pixels(golden["content_images"][:, :96, :128])
    codes = stylizer.embed(images)
    for row in range(2):
        torch.testing.assert_close(stylizer.embed(images[[row]])[0], codes[row], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(stylizer.render(images[[row]], codes[[row]])[0], stylizer.render(images, codes)[row], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("_weights")
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 46), (35, 101)])
def test_any_size_from_32_px_is_stylized(golden, height, width):
    stylizer = Config(style_px=64).build(CPU)
    images = _pixels(golden["content_images"][:1, :height, :width])
    assert stylizer.render(images, stylizer.embed(images)).shape == images.shape


@pytest.mark.usefixtures("_weights")
def test_other_sizes_are_padded_with_their_border_and_cropped(golden):
    stylizer = Config(style_px=64).build(CPU)
    images = _pixels(golden["content_images"][:1, :62, :61])
    codes = stylizer.embed(_pixels(golden["style_images"][:1]))
    padded = torch.nn.functional.pad(images, (0, 3, 0, 2), mode="replicate")
    torch.testing.assert_close(stylizer.render(images, codes), stylizer.render(padded, codes)[:, :, :62, :61], atol=0, rtol=0)


@pytest.mark.usefixtures("_weights")
def test_too_small_images_are_refused():
    stylizer = Config(style_px=64).build(CPU)
    with pytest.raises(UsageError, match="at least 32 px, not 40 x 31"):
        stylizer.render(torch.rand(1, 3, 31, 40), torch.zeros(1, 100))


@pytest.mark.usefixtures("_weights")
def test_bfloat16_paints_nearly_the_same(golden):
    images, styles = _pixels(golden["content_images"][:1, :64, :64]), _pixels(golden["style_images"][:1])
    exact, rough = (Config(style_px=64, precision=precision).build(CPU) for precision in ("float32", "bfloat16"))
    picture = rough.render(images, rough.embed(styles))
    assert picture.dtype == torch.float32
    assert (picture - exact.render(images, exact.embed(styles))).abs().mean() < 0.04


def test_without_weights_the_error_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"ray-sassl weights fetch magenta.*3\.2 MB"):
        Config().build(CPU)


def test_files_of_another_network_are_refused(shared_dir):
    files = {file.name: (shared_dir / "stylizer" / file.name).read_bytes() for file in WEIGHTS.files}
    with pytest.raises(BadTfliteError, match="another network"):
        convert({PREDICTOR: files[TRANSFORMER], TRANSFORMER: files[TRANSFORMER]})
