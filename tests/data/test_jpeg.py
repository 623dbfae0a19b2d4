"""The fast way to a JPEG's pixels against Pillow's: the same pixels, and what it does not take is left to Pillow."""

import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from ray_sassl.data.decode import DecodeError, decode, open_image
from ray_sassl.data.jpeg import jpeg_pixels, jpeg_size

LIMIT = 10**8


def _jpeg(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def _picture(width: int = 61, height: int = 45, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def _pillows(encoded: bytes) -> np.ndarray | None:
    """The pixels as Pillow alone decodes them; None where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(JpegImagePlugin.JpegImageFile(BytesIO(encoded)).convert("RGB"))
    except Exception:  # noqa: BLE001 what it raises depends on where the damage is
        return None


KINDS = {
    "plain": _jpeg(_picture()),
    "gray": _jpeg(_picture(mode="L")),
    "progressive": _jpeg(_picture(), progressive=True),
    "all chroma": _jpeg(_picture(), subsampling=0),
    "half chroma": _jpeg(_picture(), subsampling=1),
    "restarts": _jpeg(_picture(), restart_marker_blocks=2),
    "turned": _jpeg(_picture(), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),
    "RGB": _jpeg(_picture(), keep_rgb=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_jpegs_have_pillows_pixels(kind: str):
    encoded = KINDS[kind]
    assert jpeg_size(encoded) == (61, 45)
    pixels = jpeg_pixels(encoded, (61, 45))
    assert pixels is not None
    np.testing.assert_array_equal(pixels, _pillows(encoded))


def test_cmyk_is_left_to_pillow():
    encoded = _jpeg(_picture(mode="CMYK"))
    assert jpeg_size(encoded) is None
    np.testing.assert_array_equal(np.asarray(decode(encoded, LIMIT)), _pillows(encoded))


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shrunken_jpeg_is_the_mean_of_its_pixels(kind: str, shrink: int):
    pixels, by = open_image(KINDS[kind], LIMIT).pixels(shrink)
    assert (by, pixels.shape) == (shrink, (-(-45 // shrink), -(-61 // shrink), 3))
    whole = open_image(KINDS[kind], LIMIT).pixels()[0][: 45 // shrink * shrink, : 61 // shrink * shrink].astype(float)
    means = whole.reshape(45 // shrink, shrink, 61 // shrink, shrink, 3).mean(axis=(1, 3))
    shrunk = pixels[: 45 // shrink, : 61 // shrink]
    elsewhere = min(np.abs(np.roll(shrunk, step, axis) - means).mean() for step in (-1, 1) for axis in (0, 1))
    assert np.abs(shrunk - means).mean() < min(20, elsewhere / 1.5)


def test_only_plain_jpegs_shrink():
    file = BytesIO()
    _picture().save(file, "PNG")
    for encoded in (file.getvalue(), _jpeg(_picture(mode="CMYK"))):
        pixels, by = open_image(encoded, LIMIT).pixels(4)
        assert (by, pixels.shape) == (1, (45, 61, 3))


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_is_cut_off_is_as_good_or_bad_as_in_pillow(kind: str, share: float):
    encoded = KINDS[kind][: int(len(KINDS[kind]) * share)]
    expected = _pillows(encoded)
    if expected is None:
        with pytest.raises(DecodeError):
            decode(encoded, LIMIT)
        with pytest.raises(DecodeError):
            open_image(encoded, LIMIT).pixels(2)
    else:
        np.testing.assert_array_equal(np.asarray(decode(encoded, LIMIT)), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_anywhere_ends_as_in_pillow(kind: str, data: st.DataObject):
    encoded = bytearray(KINDS[kind])
    for place in data.draw(st.lists(st.integers(3, len(encoded) - 1), min_size=1, max_size=4)):
        encoded[place] = data.draw(st.integers(0, 255))
    damaged, size = bytes(encoded), jpeg_size(bytes(encoded))
    if size is None or size[0] * size[1] > 10**6 or (pixels := jpeg_pixels(damaged, size)) is None:
        return
    np.testing.assert_array_equal(pixels, _pillows(damaged))


def test_a_bomb_is_refused_by_its_header():
    encoded = bytearray(KINDS["plain"])
    place = encoded.index(b"\xff\xc0") + 5
    encoded[place : place + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(DecodeError, match="65,535 x 65,535 pixels are more than"):
        open_image(bytes(encoded), LIMIT)


def test_real_photographs_have_pillows_pixels(shared_dir: Path):
    paths = [*(shared_dir / "data/imagenet-sample/originals").glob("*.JPEG"), *(shared_dir / "data/decode-odd").glob("*.jpg")]
    plain = 0
    for path in paths:
        encoded = path.read_bytes()
        image, expected = open_image(encoded, LIMIT), _pillows(encoded)
        plain += image.is_plain
        if expected is None:
            with pytest.raises(DecodeError, match="truncated"):
                image.pixels()
        else:
            np.testing.assert_array_equal(image.pixels()[0], expected)
            np.testing.assert_array_equal(np.asarray(image.image()), expected)
    assert (len(paths), plain) == (29, 28)
