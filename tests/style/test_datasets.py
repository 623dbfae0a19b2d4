"""What one actor does to its rows, without Ray."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sassl.config.overrides import OverrideError, apply_overrides
from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index
from ray_sassl.files.paths import with_absolute_paths
from ray_sassl.nn.chunks import Chunks
from ray_sassl.process.errors import UsageError
from ray_sassl.style import datasets
from ray_sassl.style.augment import draw_styles
from ray_sassl.style.bank import BadBankError, StyleBank
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.datasets import (
    DatasetStylizer,
    StyleJobConfig,
    change_of,
    check_job,
    encode,
    sample_squares,
    square,
)
from ray_sassl.style.stylizers import Stylizer
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.style.weights import MissingWeightsError
from ray_sassl.views.keyed import DrawKey
from tests.alive import Alive

CPU = torch.device("cpu")
FULL = {"prob": 1.0, "alpha": (1.0, 1.0), "beta": (1.0, 1.0)}


def _photos(count: int, width: int = 40, height: int = 36, seed: int = 0) -> list[np.ndarray]:
    """Images (height, width, 3) uint8 whose colors differ much."""
    draws = np.random.default_rng(seed)
    base = draws.integers(0, 200, (count, 1, 1, 3))
    return list((base + draws.integers(0, 56, (count, height, width, 3))).astype(np.uint8))


def _encoded(pixels: np.ndarray, format_: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format_, **options)
    return out.getvalue()


def _rows(encoded: list[bytes | BadRow], first: int = 0) -> Rows:
    count = len(encoded)
    ids = np.arange(first, first + count)
    keys = [f"/data/a.parquet#{row}" for row in range(count)]
    return Rows(ids, encoded, ids % 7, keys, ["/data/a.parquet"] * count, np.arange(count))


def _pixels(encoded: object) -> np.ndarray:
    assert isinstance(encoded, bytes)
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def _dataset_stylizer(stylize: str = "color_statistics", num_threads: int = 1, **sassl) -> DatasetStylizer:
    config = StyleJobConfig(stylize=stylize, sassl=SasslConfig(**{**FULL, **sassl}), seed=3)  # pyright: ignore[reportArgumentType]
    return DatasetStylizer.build(config, CPU, num_threads)


def _float(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture
def bank(tmp_path: Path) -> str:
    """A bank of five styles for `color_statistics`."""
    stylizer = ColorStatistics().build(CPU)
    codes = torch.cat([stylizer.embed(_float(image)) for image in _photos(5, seed=9)]).numpy()
    path = str(tmp_path / "bank.safetensors")
    StyleBank.of(codes, [f"style {number}" for number in range(5)], stylizer.bundle_id).save(path)
    return path


@pytest.mark.parametrize("stylize", ["color_statistics", "swift"])
def test_codes_are_the_stylizers_of_each_images_middle(stylize: str):
    stylizer = _dataset_stylizer(stylize)
    images = [*_photos(3, 60, 40), *_photos(3, 33, 90, seed=1)]
    codes, keys, bad = stylizer.codes(_rows([_encoded(image) for image in images]), 10**6)
    assert (keys, bad) == ([f"/data/a.parquet#{row}" for row in range(6)], [])
    for image, code in zip(images, codes, strict=True):
        height, width, _ = image.shape
        top, left = max(0, (height - width) / 2), max(0, (width - height) / 2)
        side, px = min(height, width), stylizer.stylizer.style_px
        middle = Image.fromarray(image).resize((px, px), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
        expected = stylizer.stylizer.embed(_float(np.asarray(middle)))[0].numpy()
        np.testing.assert_allclose(code, expected, atol=1e-5, rtol=1e-4)
        unscaled = stylizer.stylizer.embed(_float(image[int(top) : int(top) + side, int(left) : int(left) + side]))[0].numpy()
        assert np.corrcoef(code, unscaled)[0, 1] > 0.99


def test_codes_of_bad_rows_are_left_out_and_named():
    images = _photos(4)
    rows = _rows([_encoded(images[0]), b"GIF89a", _encoded(images[1])[:60], BadRow("/data/a.parquet", 3, 3, "cannot be read")])
    codes, keys, bad = _dataset_stylizer().codes(rows, 10**6)
    assert (len(codes), keys) == (1, ["/data/a.parquet#0"])
    assert [row.sample_id for row in bad] == [1, 2, 3]
    assert "GIF" in bad[0].reason
    assert "damaged" in bad[1].reason
    assert bad[2].reason == "cannot be read"


def test_images_are_decoded_once_and_again_only_where_their_pixels_had_no_room(monkeypatch: pytest.MonkeyPatch):
    alive = Alive(monkeypatch, datasets)
    stylizer, rows = _dataset_stylizer(), _rows([_encoded(image) for image in _photos(9)])
    once, _ = stylizer.stylize(rows, 0, 10**6)
    assert (alive.most, alive.total) == (1, 9)
    monkeypatch.setattr(datasets, "_KEPT_BYTES", 5 * _photos(1)[0].nbytes)
    partly_twice, _ = stylizer.stylize(rows, 0, 10**6)
    assert (alive.most, alive.total) == (1, 9 + 9 + 4)
    assert partly_twice.encoded == once.encoded


def test_one_decoded_image_is_held_at_a_time_for_codes(monkeypatch: pytest.MonkeyPatch):
    alive = Alive(monkeypatch, datasets)
    _dataset_stylizer().codes(_rows([_encoded(image) for image in _photos(9)]), 10**6)
    assert (alive.most, alive.total) == (1, 9)


def test_no_usable_image_gives_no_codes_and_no_rows():
    stylizer, rows = _dataset_stylizer(), _rows([b"GIF89a", b""])
    codes, keys, bad = stylizer.codes(rows, 10**6)
    assert (codes.shape, keys, len(bad)) == ((0, 9), [], 2)
    stylized, bad = stylizer.stylize(rows, 0, 10**6)
    assert (len(stylized), len(bad)) == (0, 2)


@pytest.mark.parametrize("strength", [{}, {"alpha": (0.2, 0.9), "beta": (0.3, 0.8), "prob": 0.6}])
def test_images_are_stylized_by_algorithm_1_one_by_one(strength):
    """Each image by itself, in float64, against the batched work."""
    stylizer, images = _dataset_stylizer(**strength), _photos(9)
    rows = _rows([_encoded(image) for image in images], first=100)
    stylized, bad = stylizer.stylize(rows, 2, 10**6)
    assert (stylized.sample_id.tolist(), stylized.label.tolist(), stylized.key, bad) == (
        rows.sample_id.tolist(),
        rows.label.tolist(),
        rows.key,
        [],
    )
    params = draw_styles(stylizer.config.sassl, DrawKey(3, 2, rows.sample_id))
    assert params.partner is not None
    codes, _, _ = stylizer.codes(rows, 10**6)
    for row, image in enumerate(images):
        if not params.apply[row]:
            assert stylized.encoded[row] == rows.encoded[row]
            continue
        alpha, beta = params.alpha[row], params.beta[row]
        z = torch.from_numpy((1 - alpha) * codes[row].astype(np.float64) + alpha * codes[params.partner[row]].astype(np.float64))
        content = _float(image).double()
        expected = (1 - beta) * content + beta * stylizer.stylizer.render(content, z[None])
        difference = _pixels(stylized.encoded[row]) - expected[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(difference).max() < 0.51


def test_full_strength_gives_each_image_the_colors_of_another_one():
    images = _photos(6)
    stylized, _ = _dataset_stylizer().stylize(_rows([_encoded(image) for image in images]), 0, 10**6)
    before = np.array([image.mean(axis=(0, 1)) for image in images])
    after = np.array([_pixels(encoded).mean(axis=(0, 1)) for encoded in stylized.encoded])
    given = [int(np.abs(before - mean).sum(axis=1).argmin()) for mean in after]
    assert sorted(given) == list(range(6))
    assert all(row != style for row, style in enumerate(given))


def test_probability_zero_gives_the_very_bytes_back():
    encoded = [_encoded(image, format_) for image, format_ in zip(_photos(3), ("JPEG", "PNG", "WEBP"), strict=True)]
    stylized, bad = _dataset_stylizer(prob=0.0).stylize(_rows([*encoded]), 0, 10**6)
    assert (stylized.encoded, bad) == (encoded, [])


def test_copies_differ_and_each_is_the_same_every_time():
    rows = _rows([_encoded(image) for image in _photos(8)])
    copies = [_dataset_stylizer().stylize(rows, copy, 10**6)[0] for copy in (0, 1, 2, 0)]
    assert copies[0].encoded == copies[3].encoded
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a != b for a, b in zip(copies[one].encoded, copies[other].encoded, strict=True)) >= 4
    assert all(copy.label.tolist() == rows.label.tolist() for copy in copies)


def test_threads_and_batches_change_nothing():
    rows = _rows([_encoded(image) for image in _photos(40)])
    expected, _ = _dataset_stylizer("swift").stylize(rows, 0, 10**6)
    other = _dataset_stylizer("swift", num_threads=3)
    other._embed_chunks, other._pixels_at_once = Chunks(7), 5 * 40 * 36
    try:
        stylized, _ = other.stylize(rows, 0, 10**6)
    finally:
        torch.set_num_threads(1)
    for one, two in zip(expected.encoded, stylized.encoded, strict=True):
        assert np.abs(_pixels(one).astype(int) - _pixels(two)).max() <= 1


def test_every_image_keeps_its_size_and_format():
    sizes = [(40, 36), (64, 33), (40, 36), (35, 80), (33, 33)]
    images = [_photos(1, *size, seed=number)[0] for number, size in enumerate(sizes)]
    formats = [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("WEBP", {"quality": 80}), ("PNG", {})]
    encoded = [_encoded(image, format_, **options) for image, (format_, options) in zip(images, formats, strict=True)]
    stylized, bad = _dataset_stylizer().stylize(_rows([*encoded]), 0, 10**6)
    assert bad == []
    opened = [Image.open(io.BytesIO(content)) for content in stylized.encoded]  # pyright: ignore[reportArgumentType]
    assert [image.size for image in opened] == sizes
    assert [image.format for image in opened] == [format_ for format_, _ in formats]
    assert all(content != original for content, original in zip(stylized.encoded, encoded, strict=True))


@pytest.mark.parametrize(("format_", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_formats_without_loss_stay_without_loss(format_: str, options: dict):
    image, other = _photos(2)
    np.testing.assert_array_equal(_pixels(encode(other, _encoded(image, format_, **options), 50)), other)


def test_the_quality_is_that_of_the_config():
    image = _photos(1)[0]
    original = _encoded(image, "JPEG")
    assert len(encode(image, original, 30)) < len(encode(image, original, 95))
    assert np.abs(_pixels(encode(image, original, 100)).astype(int) - image).mean() < 2


def test_images_that_are_too_small_or_damaged_are_listed_and_the_others_kept():
    images = [*_photos(2), *_photos(1, 31, 40, seed=4), *_photos(2, seed=5)]
    encoded: list[bytes | BadRow] = [_encoded(image) for image in images]
    encoded[3] = b"GIF89a"
    stylized, bad = _dataset_stylizer("swift").stylize(_rows(encoded, first=10), 0, 10**6)
    assert stylized.sample_id.tolist() == [10, 11, 14]
    assert sorted((row.sample_id, row.reason[:40]) for row in bad) == [
        (12, "31 x 40 px: the stylizer needs at least "),
        (13, "not a JPEG, PNG or WebP image but GIF"[:40]),
    ]
    assert "32 px" in next(row.reason for row in bad if row.sample_id == 12)


def test_blocks_are_of_equal_size_so_that_no_image_is_left_without_a_style(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets, "BLOCK_ROWS", 4)
    stylizer, images = _dataset_stylizer(), _photos(5)
    stylized, _ = stylizer.stylize(_rows([_encoded(image) for image in images]), 0, 10**6)
    means = np.array([image.mean(axis=(0, 1)) for image in images])
    moved = [np.abs(_pixels(encoded).mean(axis=(0, 1)) - mean).max() for encoded, mean in zip(stylized.encoded, means, strict=True)]
    assert min(moved) > 3
    assert stylizer.notes == []


def test_a_lonely_image_is_reported():
    stylizer = _dataset_stylizer()
    stylizer.stylize(_rows([_encoded(_photos(1)[0]), b"GIF89a"]), 0, 10**6)
    assert stylizer.notes == ["/data/a.parquet#0 was stylized in its own style: its block has no other image to take a style from"]


class Crowded(Stylizer):
    """`color_statistics` with memory for so many pixels at once, that counts what it is asked."""

    bundle_id, code_size = "color_statistics-v1", 9

    def __init__(self, most_pixels: float, error: type[Exception] = torch.OutOfMemoryError, message: str = "out of memory") -> None:
        self.inner, self.most_pixels, self.error = ColorStatistics().build(CPU), most_pixels, error(message)
        self.embedded, self.refused = 0, 0

    def _check(self, images: torch.Tensor) -> None:
        if images[:, 0].numel() > self.most_pixels:
            self.refused += 1
            raise self.error

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        self._check(images)
        self.embedded += len(images)
        return self.inner.embed(images)

    def render(self, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        self._check(images)
        return self.inner.render(images, codes)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError, "CUDA out of memory"),
        (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        (RuntimeError, "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        (MemoryError, ""),
    ],
)
def test_out_of_memory_halves_the_batch_loses_nothing_and_is_reported_once(error, message):
    rows = _rows([_encoded(image) for image in _photos(24)])
    expected, _ = _dataset_stylizer().stylize(rows, 0, 10**6)
    stylizer = _dataset_stylizer()
    crowded = Crowded(3 * 256 * 256, error, message)
    stylizer.stylizer = crowded
    stylized, bad = stylizer.stylize(rows, 0, 10**6)
    assert bad == []
    assert [_pixels(one).tolist() for one in stylized.encoded] == [_pixels(one).tolist() for one in expected.encoded]
    assert stylizer.notes == ["24 codes from 256 x 256 px did not fit into memory at once; continued with 3, and nothing was left out"]
    refused = crowded.refused
    stylizer.stylize(rows, 1, 10**6)
    assert crowded.refused == refused  # the smaller size is kept


def test_out_of_memory_in_rendering_halves_the_batch_for_all_sizes():
    stylizer = _dataset_stylizer()
    small, large = _photos(8), _photos(8, 80, 72, seed=1)
    rows = _rows([_encoded(image) for image in (*small, *large)])
    expected, _ = stylizer.stylize(rows, 0, 10**6)
    stylizer.stylizer = crowded = Crowded(1 * 256 * 256)  # one square at a time, so 11 of the large images
    stylizer._embed_chunks = Chunks(1)
    crowded.most_pixels = 80 * 72 * 5
    crowded.embed = crowded.inner.embed
    stylized, bad = stylizer.stylize(rows, 0, 10**6)
    assert (bad, stylized.encoded) == ([], expected.encoded)
    assert stylizer.notes == ["8 images of 80 x 72 px did not fit into memory at once; continued with 4, and nothing was left out"]


def test_an_image_that_never_fits_is_listed_and_the_others_are_kept():
    stylizer = _dataset_stylizer()
    images = [*_photos(3), *_photos(1, 200, 150, seed=2), *_photos(2, seed=3)]
    crowded = Crowded(6 * 40 * 36)
    crowded.embed = crowded.inner.embed
    stylizer.stylizer = crowded
    stylized, (bad,) = stylizer.stylize(_rows([_encoded(image) for image in images]), 0, 10**6)
    assert stylized.sample_id.tolist() == [0, 1, 2, 4, 5]
    assert (bad.sample_id, bad.reason) == (3, "its 200 x 150 px do not fit into memory, even without other images")


def test_another_error_is_not_taken_for_a_lack_of_memory():
    stylizer = _dataset_stylizer()
    stylizer.stylizer = Crowded(-1, RuntimeError, "a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        stylizer.stylize(_rows([_encoded(image) for image in _photos(2)]), 0, 10**6)


def test_styles_come_from_the_bank(bank: str):
    stylizer = _dataset_stylizer(style_source="bank", bank=bank)
    images = _photos(12)
    stylized, _ = stylizer.stylize(_rows([_encoded(image) for image in images]), 0, 10**6)
    means = StyleBank.load(bank).codes[:, :3] * 255
    found = np.array([_pixels(encoded).mean(axis=(0, 1)) for encoded in stylized.encoded])
    nearest = np.abs(found[:, None] - means[None]).max(axis=2).argmin(axis=1)
    assert np.abs(found - means[nearest]).max() < 2
    assert len(set(nearest.tolist())) >= 3


def test_codes_without_effect_are_not_computed(bank: str):
    rows = _rows([_encoded(image) for image in _photos(12)])

    def embedded(**sassl) -> int:
        stylizer = _dataset_stylizer(**sassl)
        stylizer.stylizer = crowded = Crowded(float("inf"))
        stylizer.stylize(rows, 0, 10**6)
        return crowded.embedded

    assert embedded() == 12
    assert embedded(prob=0.0) == 0
    assert embedded(style_source="bank", bank=bank) == 0
    assert embedded(style_source="bank", bank=bank, alpha=(0.1, 0.3)) == 12


def test_a_bank_of_another_stylizer_is_refused_before_any_work(bank: str):
    config = StyleJobConfig(stylize="swift", sassl=SasslConfig(style_source="bank", bank=bank))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadBankError, match=r"has codes of color_statistics-v1, which mean nothing to swift-v1"):
        check_job(config)


def test_a_job_without_weights_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="weights fetch magenta"):
        check_job(StyleJobConfig(stylize="magenta"))  # pyright: ignore[reportArgumentType]


def test_what_has_no_effect_is_refused():
    with pytest.raises(OverrideError, match="stylize=identity changes nothing"):
        apply_overrides(StyleJobConfig(), ["stylize=identity"])
    with pytest.raises(OverrideError, match=r"sassl\.views is for pretraining"):
        apply_overrides(StyleJobConfig(), ["sassl.views=both"])


def test_a_change_tells_jobs_apart_and_knows_a_bank_that_was_moved(bank: str, tmp_path: Path):
    base = apply_overrides(StyleJobConfig(), ["sassl.style_source=bank", f"sassl.bank={bank}"])
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(Path(bank).read_bytes())
    assert change_of(apply_overrides(base, [f"sassl.bank={moved}"]), 0, "x") == change_of(base, 0, "x")
    moved.write_bytes(Path(bank).read_bytes() + b" ")
    variants = [
        (base, 0, "x"),
        (base, 1, "x"),
        (base, 0, "y"),
        (apply_overrides(base, [f"sassl.bank={moved}"]), 0, "x"),
        (apply_overrides(base, ["seed=1"]), 0, "x"),
        (apply_overrides(base, ["jpeg_quality=90"]), 0, "x"),
        (apply_overrides(base, ["sassl.alpha=[0.1,0.2]"]), 0, "x"),
        (apply_overrides(base, ["stylize.regularization=0.001"]), 0, "x"),
    ]
    assert len({str(change_of(*variant)) for variant in variants}) == len(variants)


def test_a_change_knows_ones_own_weights_by_their_content(tmp_path: Path):
    changes = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        changes.append(change_of(apply_overrides(StyleJobConfig(), [f"stylize={{name: swift, weights: {tmp_path / name}}}"]), 0, "x"))
    assert changes[0] == changes[1] != changes[2]


def test_paths_do_not_depend_on_the_folder_of_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    given = ["stylize={name: swift, weights: w.safetensors}", "sassl.style_source=bank", "sassl.bank=b.safetensors"]
    config = with_absolute_paths(apply_overrides(StyleJobConfig(), given))
    assert (config.sassl.bank, config.stylize.weights_location()) == (str(tmp_path / "b.safetensors"), str(tmp_path / "w.safetensors"))
    remote = apply_overrides(StyleJobConfig(), ["stylize={name: magenta, weights: 's3://b/w'}"])
    assert with_absolute_paths(remote) == remote


def test_a_square_is_the_middle_and_long_images_cost_no_more():
    image = Image.fromarray(_photos(1, 60, 40)[0])
    np.testing.assert_array_equal(square(image, 40), np.asarray(image)[:, 10:50])
    assert square(Image.new("RGB", (1, 30_000), "red"), 256).tolist() == np.full((256, 256, 3), (255, 0, 0)).tolist()


def test_samples_leave_bad_images_out_and_say_so(tmp_path: Path):
    for number, image in enumerate(_photos(3)):
        (tmp_path / f"{number}.png").write_bytes(_encoded(image))
    (tmp_path / "bad.png").write_bytes(b"GIF89a")
    index = build_index(DataConfig(path=str(tmp_path)))
    squares, names, (bad,) = sample_squares(index, 10, 32, 0)
    assert sorted(names) == ["0.png", "1.png", "2.png"]
    assert [image.shape for image in squares] == [(32, 32, 3)] * 3
    assert Path(bad.path).name == "bad.png"
    assert sample_squares(index, 2, 32, 5)[1] == sample_squares(index, 2, 32, 5)[1]


def test_an_error_gives_the_reason_if_no_sample_can_be_decoded(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"GIF89a")
    with pytest.raises(UsageError, match=r"none of 1 images could be decoded[\s\S]*bad.png.*but GIF"):
        sample_squares(build_index(DataConfig(path=str(tmp_path))), 3, 32, 0)


def test_images_pass_through_an_actor_unchanged_without_blending():
    images = _photos(2)
    stylized, _ = _dataset_stylizer(beta=(0.0, 0.0)).stylize(_rows([_encoded(image) for image in images]), 0, 10**6)
    for image, encoded in zip(images, stylized.encoded, strict=True):
        np.testing.assert_array_equal(_pixels(encoded), image)
