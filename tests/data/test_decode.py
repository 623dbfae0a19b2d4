import pickle
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_sassl.data import Rows
from ray_sassl.data import decode as decode_module
from ray_sassl.data.decode import DecodeError, decode, image_size
from ray_sassl.data.quarantine import BadRow

LIMIT = 10**8


def _encode(image: Image.Image, format_: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format=format_, **options)
    return file.getvalue()


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1"])
def test_every_png_mode_becomes_rgb(mode: str):
    image = decode(_encode(Image.fromarray(_noise(9, 7, 3)).convert(mode), "PNG"), LIMIT)
    assert (image.mode, image.size) == ("RGB", (7, 9))


def test_a_lossless_image_keeps_its_pixels():
    pixels = _noise(9, 7, 3)
    assert np.array_equal(np.asarray(decode(_encode(Image.fromarray(pixels), "PNG"), LIMIT)), pixels)
    assert np.array_equal(np.asarray(decode(_encode(Image.fromarray(pixels), "WEBP", lossless=True), LIMIT)), pixels)


def test_sixteen_bits_are_scaled_and_not_clipped():
    wide = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = np.asarray(decode(_encode(Image.fromarray(wide), "PNG"), LIMIT))
    assert np.array_equal(image[..., 0], np.round(wide / 257).astype(np.uint8))


def test_alpha_shows_white_below_it():
    alpha = _noise(4, 4)
    pixels = np.dstack([_noise(4, 4, 3), alpha])
    share = alpha[..., None] / 255
    wanted = pixels[..., :3] * share + 255 * (1 - share)
    assert np.abs(np.asarray(decode(_encode(Image.fromarray(pixels), "PNG"), LIMIT)) - wanted).max() <= 1
    pixels[..., 3] = 255
    assert np.array_equal(np.asarray(decode(_encode(Image.fromarray(pixels), "PNG"), LIMIT)), pixels[..., :3])


@pytest.mark.parametrize("format_", ["GIF", "BMP", "TIFF"])
def test_other_formats_are_refused_by_name(format_: str):
    with pytest.raises(DecodeError, match=f"not a JPEG, PNG or WebP image but {format_}"):
        decode(_encode(Image.fromarray(_noise(4, 4)), format_), LIMIT)


@pytest.mark.parametrize("encoded", [b"", b"hello", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_foreign_and_empty_bytes_are_refused(encoded: bytes):
    with pytest.raises(DecodeError):
        decode(encoded, LIMIT)


def test_a_decompression_bomb_is_refused_before_its_pixels_are_decoded():
    with pytest.raises(DecodeError, match="60,000 x 60,000 pixels are more than"):
        decode(_png_header(60_000, 60_000), LIMIT)


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
def test_the_size_of_a_webp_is_checked_before_it_is_opened(options: dict[str, object]):
    encoded = _encode(Image.fromarray(_noise(30, 50, 3)), "WEBP", **options)
    assert image_size(encoded) == ("WEBP", 50, 30)
    with pytest.raises(DecodeError, match="50 x 30 pixels"):
        decode(encoded, 1499)
    assert decode(encoded, 1500).size == (50, 30)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_is_cut_off_raises(format_: str):
    encoded = _encode(Image.fromarray(_noise(64, 64, 3)), format_)
    with pytest.raises(DecodeError):
        decode(encoded[: len(encoded) // 2], LIMIT)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG", "WEBP"]), st.data())
def test_damage_anywhere_gives_an_image_or_a_reason_and_never_another_error(format_: str, data: st.DataObject):
    encoded = bytearray(_encode(Image.fromarray(_noise(12, 12, 3)), format_))
    for place in data.draw(st.lists(st.integers(0, len(encoded) - 1), min_size=1, max_size=4)):
        encoded[place] = data.draw(st.integers(0, 255))
    with suppress(DecodeError):
        assert decode(bytes(encoded), 10**6).mode == "RGB"


def test_the_odd_jpegs_end_as_they_should(shared_dir: Path):
    folder = shared_dir / "data" / "decode-odd"
    with pytest.raises(DecodeError, match="truncated"):
        decode((folder / "truncated_jpeg.jpg").read_bytes(), LIMIT)
    good = {path.name: decode(path.read_bytes(), LIMIT) for path in folder.glob("*.jpg") if path.name != "truncated_jpeg.jpg"}
    assert len(good) == 4
    assert {image.mode for image in good.values()} == {"RGB"}
    difference = np.asarray(good["pil_sample_cmyk.jpg"], float) - np.asarray(good["pil_sample_rgb.jpg"], float)
    assert np.abs(difference).mean() < 12, "the inverted CMYK of Adobe shows as a negative where it is not turned back"
    assert good["hopper_orientation_6.jpg"].size == image_size((folder / "hopper_orientation_6.jpg").read_bytes())[1:]


def test_the_imagenet_originals_all_decode_and_orientation_is_not_applied(shared_dir: Path):
    sizes = {path.name: decode(path.read_bytes(), LIMIT).size for path in (shared_dir / "data/imagenet-sample/originals").iterdir()}
    assert len(sizes) == 24
    assert sizes["n02951585_can_opener.JPEG"] == (392, 294)


def test_a_webp_whose_canvas_is_small_and_whose_decoder_finds_a_bomb_is_damaged(monkeypatch: pytest.MonkeyPatch):
    def refuse(*arguments: object, **named: object) -> None:
        raise Image.DecompressionBombError("Image size (12173105014224 pixels) exceeds limit")

    monkeypatch.setitem(decode_module._OPENERS, "WEBP", refuse)
    with pytest.raises(DecodeError, match="damaged: Image size"):
        decode(_encode(Image.new("RGB", (8, 8)), "WEBP"), 10_000)


def test_rows_are_sent_with_their_images_as_buffers_and_arrive_as_they_were():
    draws = np.random.default_rng(0)
    images: list[bytes | BadRow] = [draws.bytes(50_000), b"", BadRow("a", 2, 2, "no image"), draws.bytes(10)]
    rows = Rows(np.arange(4), images, np.array([1, -1, -1, 0]), list("abcd"), ["a"] * 4, np.arange(4))
    buffers: list[pickle.PickleBuffer] = []
    sent = pickle.dumps(rows, protocol=5, buffer_callback=buffers.append)
    assert len(sent) < 5_000
    for there in (pickle.loads(sent, buffers=[memoryview(buffer) for buffer in buffers]), pickle.loads(pickle.dumps(rows, protocol=4))):
        assert there.encoded == images
        assert [type(image) for image in there.encoded] == [bytes, bytes, BadRow, bytes]
        assert (there.key, there.path) == (rows.key, rows.path)
        for name in ("sample_id", "label", "row"):
            np.testing.assert_array_equal(getattr(there, name), getattr(rows, name))
