from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ray_sassl.keyed import DrawKey
from ray_sassl.nn.chunks import Chunks
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.style.augment import SasslConfig, blend, draw_styles, style_partners, stylize_views
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.stylizers.color_statistics import Config
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import draw
from ray_sassl.views.opencv import color
from ray_sassl.views.recipes import byol

CPU = torch.device("cpu")
STYLIZER = Config().build(CPU)


@pytest.fixture(scope="module")
def photos(shared_dir) -> list[Image.Image]:
    paths = sorted((shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"))[:12]
    return [Image.open(path).convert("RGB").resize((80, 64)) for path in paths]


@pytest.fixture(scope="module")
def images(photos) -> np.ndarray:
    """(12, 64, 80, 3) uint8."""
    return np.stack([np.asarray(photo) for photo in photos])


def test_partners_are_a_permutation_without_fixed_points():
    for size in (2, 3, 64):
        partners = style_partners(DrawKey(1, 0, np.arange(size) * 7))
        assert sorted(partners) == list(range(size))
        assert not np.any(partners == np.arange(size))


def test_a_block_of_one_row_is_its_own_partner():
    assert style_partners(DrawKey(1, 0, np.array([5]))).tolist() == [0]


def test_partners_do_not_depend_on_the_order_of_the_rows():
    ids = np.array([40, 3, 77, 12, 9])
    of = dict(zip(ids, ids[style_partners(DrawKey(1, 2, ids))], strict=True))
    shuffled = ids[[3, 0, 4, 2, 1]]
    assert dict(zip(shuffled, shuffled[style_partners(DrawKey(1, 2, shuffled))], strict=True)) == of


def test_draws_follow_the_config():
    params = draw_styles(SasslConfig(prob=0.8, alpha=(0.1, 0.3), beta=(0.5, 0.6)), DrawKey(0, 0, np.arange(4000)))
    assert params.apply.mean() == pytest.approx(0.8, abs=0.03)
    assert (params.alpha.min() >= 0.1, params.alpha.max() < 0.3, params.alpha.mean() == pytest.approx(0.2, abs=0.01)) == (True,) * 3
    assert (params.beta.min() >= 0.5, params.beta.max() < 0.6) == (True, True)
    assert abs(np.corrcoef(params.alpha, params.beta)[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("views", "changed"),
    [
        ("left", [True, False, False, False]),
        ("right", [False, True, False, False]),
        ("both", [True, True, False, False]),
        ("small", [False, False, True, True]),
        ("all", [True, True, True, True]),
    ],
)
def test_only_the_chosen_views_are_stylized(images, views, changed):
    small = images[:, ::2, ::2]
    before = [images, images, small, small]
    styled = stylize_views(STYLIZER, before, DrawKey(0, 0, np.arange(12)), SasslConfig(views=views, prob=1.0), CPU)
    assert [not np.array_equal(after, view) for after, view in zip(styled, before, strict=True)] == changed
    assert [view.shape for view in styled] == [view.shape for view in before]


def test_each_small_view_draws_its_own_style(images):
    small = images[:, ::2, ::2]
    styled = stylize_views(
        STYLIZER, [images, images, small, small], DrawKey(0, 0, np.arange(12)), SasslConfig(views="small", prob=1.0), CPU
    )
    assert (styled[2] != styled[3]).any(axis=(1, 2, 3)).all()


def test_only_the_drawn_samples_are_stylized(images):
    config, ids = SasslConfig(prob=0.5, alpha=(1, 1), beta=(1, 1)), np.arange(12)
    (styled,) = stylize_views(STYLIZER, [images], DrawKey(3, 0, ids), config, CPU)
    np.testing.assert_array_equal((styled != images).any(axis=(1, 2, 3)), draw_styles(config, DrawKey(3, 0, ids)).apply)


@pytest.mark.parametrize("strength", [{"alpha": (0, 0)}, {"beta": (0, 0)}])
def test_blending_nothing_gives_the_images_back(images, strength):
    (styled,) = stylize_views(STYLIZER, [images], DrawKey(0, 0, np.arange(12)), SasslConfig(prob=1.0, **strength), CPU)
    np.testing.assert_array_equal(styled, images)


def test_views_follow_algorithm_1_sample_by_sample(images):
    config, ids = SasslConfig(prob=0.7, alpha=(0.2, 0.9), beta=(0.3, 0.8)), np.arange(100, 112)
    (styled,) = stylize_views(STYLIZER, [images], DrawKey(2, 1, ids), config, CPU, chunks=Chunks(5))
    params = draw_styles(config, DrawKey(2, 1, ids))
    for row in np.flatnonzero(params.apply):
        content, style = to_float(images[[row]], CPU), to_float(images[[params.partner[row]]], CPU)
        alpha, beta = params.alpha[row], params.beta[row]
        z = (1 - alpha) * STYLIZER.embed(content) + alpha * STYLIZER.embed(style)
        expected = (1 - beta) * content + beta * STYLIZER.render(content, z)
        assert np.abs(styled[[row]].astype(int) - to_uint8(expected)).max() <= 1


def test_full_strength_is_the_partners_style(images):
    content, style = to_float(images[:1], CPU), to_float(images[1:2], CPU)
    one = torch.ones(1)
    blended = blend(STYLIZER, content, STYLIZER.embed(content), STYLIZER.embed(style), one, one)
    torch.testing.assert_close(blended, STYLIZER.render(content, STYLIZER.embed(style)))


def test_uint8_survives_the_trip_through_float(images):
    np.testing.assert_array_equal(to_uint8(to_float(images, CPU)), images)


def test_views_are_the_same_bytes_in_any_order_batch_and_sub_batch(photos):
    """From crop to color: rows in another order, colors in other batches, styles in other sub-batches."""
    ids, sizes, config = np.arange(50, 62), np.array([photo.size for photo in photos]), byol(32)

    def views(rows: np.ndarray, style_batch: int, color_batch: int) -> list[np.ndarray]:
        params = [draw(view, sizes[rows], DrawKey(9, 4, ids[rows], number)) for number, view in enumerate(config.views)]
        chosen = [photos[row] for row in rows]
        crops = [crop(chosen, p, config.size_px, view.interpolation) for p, view in zip(params, config.views, strict=True)]
        styled = stylize_views(STYLIZER, crops, DrawKey(9, 4, ids[rows]), SasslConfig(views="both"), CPU, chunks=Chunks(style_batch))
        batches = [slice(start, start + color_batch) for start in range(0, len(rows), color_batch)]
        return [np.concatenate([color(x[b], p.take(b)) for b in batches]) for x, p in zip(styled, params, strict=True)]

    expected = views(np.arange(12), 32, 12)
    shuffled = np.array([7, 2, 11, 0, 9, 4, 1, 10, 3, 8, 6, 5])
    for style_batch, color_batch in ((32, 12), (5, 12), (1, 1)):
        for view, other in zip(expected, views(shuffled, style_batch, color_batch), strict=True):
            np.testing.assert_array_equal(other, view[shuffled])


@pytest.mark.parametrize(
    "fields", [{"alpha": (0.3, 0.1)}, {"beta": (0.1, 1.2)}, {"prob": -0.1}, {"views": "middle"}, {"style_source": "web"}]
)
def test_settings_without_meaning_are_refused(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        SasslConfig(**fields)


@pytest.fixture(scope="module")
def bank(images) -> StyleBank:
    codes = STYLIZER.embed(to_float(images[::-1].copy(), CPU)).numpy()
    return StyleBank.of(codes, [f"style-{number}" for number in range(len(codes))], STYLIZER.bundle_id)


def test_styles_from_a_bank_are_the_banks_codes(images, bank):
    config, ids = SasslConfig(style_source="bank", bank="b", prob=1.0, alpha=(1, 1), beta=(1, 1)), np.arange(12)
    params = draw_styles(config, DrawKey(5, 0, ids), bank)
    assert len(set(params.partner.tolist())) > 3
    np.testing.assert_array_equal(params.code, bank.codes[params.partner])
    (styled,) = stylize_views(STYLIZER, [images], DrawKey(5, 0, ids), config, CPU, bank)
    np.testing.assert_array_equal(styled, to_uint8(STYLIZER.render(to_float(images, CPU), torch.from_numpy(params.code))))


def test_styles_from_a_gaussian_do_not_depend_on_the_block(bank):
    config = SasslConfig(style_source="gaussian", bank="b")
    ids = np.arange(64)
    whole = draw_styles(config, DrawKey(5, 3, ids, 1), bank).code
    assert whole.shape == (64, 9)
    np.testing.assert_array_equal(draw_styles(config, DrawKey(5, 3, ids[40:9:-7], 1), bank).code, whole[40:9:-7])
    assert not np.array_equal(draw_styles(config, DrawKey(5, 4, ids, 1), bank).code, whole)


@pytest.mark.parametrize("fields", [{"style_source": "bank"}, {"style_source": "gaussian"}, {"bank": "b.safetensors"}])
def test_a_bank_is_given_where_and_only_where_it_is_used(fields):
    with pytest.raises(ValidationError, match="bank"):
        SasslConfig(**fields)


class Crowded:
    """A stylizer whose memory suffices for so many images at once."""

    bundle_id, code_size = "crowded", 9

    def __init__(self, most: int) -> None:
        self.most, self.refused = most, 0

    def _check(self, images: torch.Tensor) -> None:
        if len(images) > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory")

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._check(images)
        return STYLIZER.embed(images)

    def render(self, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        self._check(images)
        return STYLIZER.render(images, codes)


def test_out_of_memory_halves_the_batch_loses_nothing_and_is_reported(images, caplog):
    config, ids, stylizer, chunks = SasslConfig(prob=1.0), np.arange(12), Crowded(3), Chunks(12)
    (styled,) = stylize_views(stylizer, [images], DrawKey(0, 0, ids), config, CPU, chunks=chunks)
    np.testing.assert_array_equal(styled, stylize_views(STYLIZER, [images], DrawKey(0, 0, ids), config, CPU)[0])
    assert (chunks.size, stylizer.refused) == (3, 2)
    assert "going on with 3" in caplog.text


def test_out_of_memory_with_a_single_image_is_an_error(images):
    with pytest.raises(torch.OutOfMemoryError):
        stylize_views(Crowded(0), [images], DrawKey(0, 0, np.arange(12)), SasslConfig(prob=1.0), CPU)


def test_an_error_that_is_not_about_memory_is_not_tried_again(images):
    class Broken(Crowded):
        def _check(self, images: torch.Tensor) -> None:
            self.refused += 1
            raise RuntimeError("a bug")

    broken = Broken(0)
    with pytest.raises(RuntimeError, match="a bug"):
        stylize_views(broken, [images], DrawKey(0, 0, np.arange(12)), SasslConfig(prob=1.0), CPU)
    assert broken.refused == 1


def test_on_a_cpu_large_images_are_handled_few_at_a_time():
    sizes: list[int] = []

    class Watched(Crowded):
        def _check(self, images: torch.Tensor) -> None:
            sizes.append(len(images))

    images = np.random.default_rng(0).integers(0, 256, (12, 512, 256, 3), dtype=np.uint8)
    (whole,) = stylize_views(STYLIZER, [images], DrawKey(0, 0, np.arange(12)), SasslConfig(prob=1.0), CPU, chunks=Chunks(1))
    (styled,) = stylize_views(Watched(0), [images], DrawKey(0, 0, np.arange(12)), SasslConfig(prob=1.0), CPU)
    np.testing.assert_array_equal(styled, whole)
    assert max(sizes) == 4
