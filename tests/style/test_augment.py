from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ray_sassl.nn import pixels as pixels_module
from ray_sassl.nn.chunks import Chunks
from ray_sassl.nn.pixels import to_float, to_uint8
from ray_sassl.style import augment
from ray_sassl.style.augment import StyleAugmentation, blend, draw_styles, style_partners
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers.color_statistics import Config
from ray_sassl.views import ops
from ray_sassl.views.crop import crop
from ray_sassl.views.draw import ViewParams, draw
from ray_sassl.views.keyed import DrawKey
from ray_sassl.views.opencv import color
from ray_sassl.views.recipes import byol

CPU = torch.device("cpu")
STYLIZER = Config().build(CPU)


def _augmentation(stylizer: object = STYLIZER, chunks: Chunks | None = None, **fields) -> StyleAugmentation:
    return StyleAugmentation(stylizer, SasslConfig(**fields), CPU, chunks=chunks or Chunks())  # pyright: ignore[reportArgumentType]


def _stylized(images: list[np.ndarray], key: DrawKey, **fields) -> list[np.ndarray]:
    """All views of a block."""
    return [_augmentation(**fields).stylize(view, replace(key, view=number)) for number, view in enumerate(images)]


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
    styled = _stylized(before, DrawKey(0, 0, np.arange(12)), views=views, prob=1.0)
    assert [not np.array_equal(after, view) for after, view in zip(styled, before, strict=True)] == changed
    assert [view.shape for view in styled] == [view.shape for view in before]


def test_each_small_view_draws_its_own_style(images):
    small = images[:, ::2, ::2]
    styled = _stylized([images, images, small, small], DrawKey(0, 0, np.arange(12)), views="small", prob=1.0)
    assert (styled[2] != styled[3]).any(axis=(1, 2, 3)).all()


def test_only_the_drawn_samples_are_stylized(images):
    augmentation, key = _augmentation(prob=0.5, alpha=(1, 1), beta=(1, 1)), DrawKey(3, 0, np.arange(12))
    styled = augmentation.stylize(images, key)
    np.testing.assert_array_equal((styled != images).any(axis=(1, 2, 3)), draw_styles(augmentation.config, key).apply)


@pytest.mark.parametrize("strength", [{"alpha": (0, 0)}, {"beta": (0, 0)}])
def test_blending_nothing_gives_the_images_back(images, strength):
    styled = _augmentation(prob=1.0, **strength).stylize(images, DrawKey(0, 0, np.arange(12)))
    np.testing.assert_array_equal(styled, images)


def test_views_follow_algorithm_1_sample_by_sample(images):
    augmentation = _augmentation(chunks=Chunks(5), prob=0.7, alpha=(0.2, 0.9), beta=(0.3, 0.8))
    key = DrawKey(2, 1, np.arange(100, 112))
    styled, params = augmentation.stylize(images, key), draw_styles(augmentation.config, key)
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
        chosen = [np.asarray(photos[row]) for row in rows]
        crops = [crop(chosen, p, config.size_px, view.interpolation) for p, view in zip(params, config.views, strict=True)]
        styled = _stylized(crops, DrawKey(9, 4, ids[rows]), views="both", chunks=Chunks(style_batch))
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
    config, key = SasslConfig(style_source="bank", bank="b", prob=1.0, alpha=(1, 1), beta=(1, 1)), DrawKey(5, 0, np.arange(12))
    augmentation = StyleAugmentation(STYLIZER, config, CPU, bank)
    params = draw_styles(augmentation.config, key, bank)
    assert len(set(params.partner.tolist())) > 3
    np.testing.assert_array_equal(params.code, bank.codes[params.partner])
    styled = augmentation.stylize(images, key)
    np.testing.assert_array_equal(styled, to_uint8(STYLIZER.render(to_float(images, CPU), torch.from_numpy(params.code))))


def test_styles_from_a_gaussian_do_not_depend_on_the_block(bank):
    config = SasslConfig(style_source="gaussian", bank="b")
    ids = np.arange(64)
    whole = draw_styles(config, DrawKey(5, 3, ids, 1), bank).code
    assert whole.shape == (64, 9)
    np.testing.assert_array_equal(draw_styles(config, DrawKey(5, 3, ids[40:9:-7], 1), bank).code, whole[40:9:-7])
    assert not np.array_equal(draw_styles(config, DrawKey(5, 4, ids, 1), bank).code, whole)


@pytest.mark.parametrize("fields", [{"style_source": "bank"}, {"style_source": "gaussian"}, {"bank": "b.safetensors"}])
def test_a_bank_is_given_if_and_only_if_it_is_used(fields):
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
    key, stylizer, chunks = DrawKey(0, 0, np.arange(12)), Crowded(3), Chunks(12)
    styled = _augmentation(stylizer, chunks=chunks, prob=1.0).stylize(images, key)
    np.testing.assert_array_equal(styled, _augmentation(prob=1.0).stylize(images, key))
    assert (chunks.size, stylizer.refused) == (3, 2)
    assert "continuing with 3" in caplog.text


def test_pixels_without_room_beside_another_block_wait_for_their_turn(images):
    class Full:
        """Uploads that have room only if nobody else computes."""

        def start(self, move: Callable[[], torch.Tensor], tensors_of: object) -> Callable[[], torch.Tensor]:
            if not augmentation._turn.locked():
                raise torch.OutOfMemoryError("CUDA out of memory")
            return move

    augmentation, key = _augmentation(prob=1.0), DrawKey(0, 0, np.arange(12))
    object.__setattr__(augmentation, "_uploads", Full())
    np.testing.assert_array_equal(augmentation.stylize(images, key), _augmentation(prob=1.0).stylize(images, key))


def test_out_of_memory_with_a_single_image_is_an_error(images):
    with pytest.raises(torch.OutOfMemoryError):
        _augmentation(Crowded(0), prob=1.0).stylize(images, DrawKey(0, 0, np.arange(12)))


def test_an_error_that_is_not_about_memory_is_not_tried_again(images):
    class Broken(Crowded):
        def _check(self, images: torch.Tensor) -> None:
            self.refused += 1
            raise RuntimeError("a bug")

    broken = Broken(0)
    with pytest.raises(RuntimeError, match="a bug"):
        _augmentation(broken, prob=1.0).stylize(images, DrawKey(0, 0, np.arange(12)))
    assert broken.refused == 1


def test_on_a_cpu_large_images_are_handled_few_at_a_time():
    sizes: list[int] = []

    class Watched(Crowded):
        def _check(self, images: torch.Tensor) -> None:
            sizes.append(len(images))

    images = np.random.default_rng(0).integers(0, 256, (12, 512, 256, 3), dtype=np.uint8)
    key = DrawKey(0, 0, np.arange(12))
    whole = _augmentation(chunks=Chunks(1), prob=1.0).stylize(images, key)
    styled = _augmentation(Watched(0), prob=1.0).stylize(images, key)
    np.testing.assert_array_equal(styled, whole)
    assert max(sizes) == 4


# Operations behind the style transfer, on the same device


def _color(params: ViewParams, dtype: torch.dtype = torch.float32) -> Callable[[torch.Tensor, np.ndarray], torch.Tensor]:
    return lambda x, rows: ops.color(x.to(dtype), params.take(rows))


@pytest.mark.parametrize("chunk", [12, 5, 1])
def test_stylized_and_colored_views_are_rounded_once(images, chunk):
    """The whole chain from bytes to bytes, against float64 and image by image."""
    key = DrawKey(4, 1, np.arange(30, 42))
    params = draw(byol(224).left, np.full((12, 2), 80), key)
    augmentation = _augmentation(chunks=Chunks(chunk), prob=0.6, alpha=(0.2, 0.9), beta=(0.3, 0.8))
    views = augmentation.stylize(images, key, _color(params))
    styles = draw_styles(augmentation.config, key)
    assert 0 < styles.apply.sum() < 12
    for row in range(12):
        x, style = (torch.from_numpy(images[[number]]).permute(0, 3, 1, 2).double() / 255 for number in (row, styles.partner[row]))
        if styles.apply[row]:
            z = torch.lerp(STYLIZER.embed(x), STYLIZER.embed(style), styles.alpha[row])
            x = torch.lerp(x, STYLIZER.render(x, z), styles.beta[row])
        exact = 255 * _color(params, torch.float64)(x, np.array([row]))[0].permute(1, 2, 0).numpy()
        assert np.abs(views[row] - exact).max() < 0.51


@pytest.mark.parametrize("finish", [None, lambda x, rows: 1 - x])
def test_pixels_go_to_the_device_once_and_come_back_once(images, finish, monkeypatch):
    gone: list[np.ndarray] = []
    back: list[int] = []

    def upload(pixels: np.ndarray, device: torch.device) -> torch.Tensor:
        gone.append(pixels)
        return pixels_module.upload(pixels, device)

    def to_uint8(x: torch.Tensor) -> np.ndarray:
        back.append(len(x))
        return pixels_module.to_uint8(x)

    monkeypatch.setattr(augment, "upload", upload)
    monkeypatch.setattr(augment, "to_uint8", to_uint8)
    _augmentation(prob=1.0, chunks=Chunks(5)).stylize(images, DrawKey(0, 0, np.arange(12)), finish)
    assert len(gone) == 1
    assert gone[0] is images
    assert back == [5, 5, 2]


def test_views_that_are_not_stylized_are_finished_too(images):
    views = _augmentation(views="right", prob=1.0).stylize(images, DrawKey(0, 0, np.arange(12)), lambda x, rows: 1 - x)
    np.testing.assert_array_equal(views, 255 - images)


def test_out_of_memory_in_what_follows_halves_the_batch_too(images):
    chunks, sizes = Chunks(12), []

    def crowded(x: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        sizes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1 - x

    key = DrawKey(0, 0, np.arange(12))
    views = _augmentation(prob=0.5, chunks=chunks).stylize(images, key, crowded)
    np.testing.assert_array_equal(views, _augmentation(prob=0.5).stylize(images, key, lambda x, rows: 1 - x))
    assert sizes == [12, 6, 3, 3, 3, 3]
    assert chunks.size == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_views_of_a_cpu(images):
    key, config, device = DrawKey(4, 1, np.arange(12)), SasslConfig(prob=0.6), torch.device("cuda")
    params = draw(byol(224).left, np.full((12, 2), 80), key)
    ours = _augmentation(prob=0.6).stylize(images, key, _color(params))
    theirs = StyleAugmentation(Config().build(device), config, device).stylize(images, key, _color(params))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
