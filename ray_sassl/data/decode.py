"""Decode a file's bytes to RGB pixels: JPEG, PNG and WebP, recognized by their first bytes and never by a name.

Everything becomes 8-bit RGB: grayscale and palettes are expanded, CMYK is converted, 16 bits are scaled to 8, transparent pixels are put on
white, only the first frame of an animation is used, and EXIF orientation is not applied. `to_rgb` does this for files and for PIL images of
callers. Ordinary JPEGs are decoded directly into arrays (`jpeg.py`), with the same pixels. Other images are opened with the format's own
class instead of `PIL.Image.open`, which tries formats in turn and has its own limit on pixels in global state.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from ray_sassl.data import Rows
from ray_sassl.data.jpeg import jpeg_pixels, jpeg_size
from ray_sassl.data.quarantine import BadRow

T = TypeVar("T")

_JPEG, _PNG, _RIFF, _WEBP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"WEBP"
_OPENERS = {"JPEG": JpegImagePlugin.JpegImageFile, "PNG": PngImagePlugin.PngImageFile, "WEBP": WebPImagePlugin.WebPImageFile}
_TEXT_CHUNKS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"eXIf")
_FOREIGN = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"<?xm": "XML",
    b"<!DO": "HTML",
    b"<htm": "HTML",
    b"PK\3\4": "a zip archive",
    b"\x1f\x8b": "gzip",
    b"\0\0\0\x0cjP": "JPEG 2000",
    b"\0\0\1\0": "ICO",
    b"{": "JSON",
    b"version https://git-lfs": "a pointer of Git LFS, which `git lfs pull` replaces by the file",
}
_DAMAGE = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError, struct.error, zlib.error,
    Image.DecompressionBombError, MemoryError,
)  # fmt: skip
"""What Pillow raises on damaged files of these formats, depending on where the damage is; a MemoryError where a row is too long."""


_ISO_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")


class DecodeError(ValueError):
    """The bytes are not a usable image; the message is the reason."""


@dataclass(frozen=True)
class OpenImage:
    """An image whose header has been read and whose pixels have not been decoded.

    Attributes:
        encoded: The whole file.
        size: Width and height in pixels.
        is_plain: Whether it is a JPEG that does not need Pillow, according to its header.
    """

    encoded: bytes
    size: tuple[int, int]
    is_plain: bool

    def pixels(self, shrink: int = 1) -> tuple[np.ndarray, int]:
        """The image (H, W, 3) uint8 RGB, and the factor by which it was scaled down while it was decoded.

        Args:
            shrink: 1, 2, 4 or 8: the largest factor by which it may be scaled down; it then has `ceil(size / shrink)` pixels.

        Raises:
            DecodeError: it is cut off or damaged.
        """
        if self.is_plain and (pixels := jpeg_pixels(self.encoded, self.size, shrink)) is not None:
            return pixels, shrink
        return np.asarray(self._in_pillow()), 1

    def image(self) -> Image.Image:
        """The image in mode RGB.

        Raises:
            DecodeError: it is cut off or damaged.
        """
        if self.is_plain and (pixels := jpeg_pixels(self.encoded, self.size)) is not None:
            return Image.fromarray(pixels)
        return self._in_pillow()

    def _in_pillow(self) -> Image.Image:
        return to_rgb(_opened(self.encoded, self.size[0] * self.size[1]))


def open_image(encoded: bytes, max_pixels: int) -> OpenImage:
    """Open an image, and read only its header.

    Args:
        encoded: A whole JPEG, PNG or WebP file.
        max_pixels: Width times height beyond which the image is refused.

    Raises:
        DecodeError: it is of another format, or too large, or its header is damaged.
    """
    plain = jpeg_size(encoded) if image_format(encoded) == "JPEG" else None
    if plain is not None:
        _check_pixels(*plain, max_pixels)
    return OpenImage(encoded, plain or _opened(encoded, max_pixels).size, is_plain=plain is not None)


def decode(encoded: bytes, max_pixels: int) -> Image.Image:
    """The image in mode RGB.

    Args:
        encoded: A whole JPEG, PNG or WebP file.
        max_pixels: Width times height beyond which the image is refused before its pixels are decoded.

    Raises:
        DecodeError: it is of another format, too large, cut off or damaged.
    """
    return open_image(encoded, max_pixels).image()


def open_rows(rows: Rows, max_pixels: int) -> list[OpenImage | BadRow]:
    """Each row's image, with only its header read, or what is wrong with it."""
    return _each(rows, lambda encoded: open_image(encoded, max_pixels))


def decode_rows(rows: Rows, max_pixels: int, use: Callable[[Image.Image], T]) -> list[T | BadRow]:
    """The result of `use` for each row's image in mode RGB, or what is wrong with the row. One image is decoded, used and forgotten after
    the other."""
    return _each(rows, lambda encoded: use(decode(encoded, max_pixels)))


def _each(rows: Rows, read: Callable[[bytes], T]) -> list[T | BadRow]:
    """The result of `read` for each row, or what is wrong with the row."""
    found: list[T | BadRow] = []
    for place, encoded in enumerate(rows.encoded):
        if isinstance(encoded, BadRow):
            found.append(encoded)
            continue
        try:
            found.append(read(encoded))
        except DecodeError as error:
            found.append(rows.bad_row(place, str(error)))
    return found


def image_size(encoded: bytes) -> tuple[str, int, int]:
    """Format ("JPEG", "PNG", "WEBP"), width and height, from the header alone.

    Raises:
        DecodeError: it is of another format, or its header is damaged.
    """
    image = _opened(encoded, max_pixels=2**62)
    return image_format(encoded), image.width, image.height


def image_format(encoded: bytes) -> str:
    """ "JPEG", "PNG" or "WEBP", by the first bytes alone.

    Raises:
        DecodeError: it is something else.
    """
    if encoded.startswith(_JPEG):
        return "JPEG"
    if encoded.startswith(_PNG):
        return "PNG"
    if encoded.startswith(_RIFF) and encoded[8:12] == _WEBP:
        return "WEBP"
    raise DecodeError(_foreign(encoded))


def is_image(start: bytes) -> bool:
    """Whether a file with these first bytes is an image of any common format, also of one that is not read."""
    with suppress(DecodeError):
        return bool(image_format(start))
    return _is_iso(start) or any(start.startswith(magic) for magic, name in _FOREIGN.items() if name in ("GIF", "TIFF", "JPEG 2000"))


def _is_iso(start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in _ISO_BRANDS


def _opened(encoded: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The image, whose pixels are not decoded yet."""
    try:
        return _open(encoded, max_pixels)
    except _DAMAGE as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"damaged: {str(error) or type(error).__name__}") from error


def _open(encoded: bytes, max_pixels: int) -> ImageFile.ImageFile:
    format_ = image_format(encoded)
    if format_ == "WEBP":
        _check_pixels(*_webp_size(encoded), max_pixels)  # opening a WebP already allocates its canvas
    image = _OPENERS[format_](BytesIO(_without_text(encoded) if format_ == "PNG" else encoded))
    _check_pixels(image.width, image.height, max_pixels)
    return image


def _without_text(encoded: bytes) -> bytes:
    """A PNG without its texts and color profile, which are not used and of which Pillow reads at most 1 MB; the other bytes are
    unchanged."""
    kept: list[bytes] = []
    start = place = len(_PNG)
    while place + 12 <= len(encoded):
        stop = place + 12 + int.from_bytes(encoded[place : place + 4], "big")
        if encoded[place + 4 : place + 8] in _TEXT_CHUNKS:
            kept.append(encoded[start:place])
            start = stop
        place = stop
    return b"".join([_PNG, *kept, encoded[start:]]) if kept else encoded


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise DecodeError(f"{width:,} x {height:,} pixels are more than data.max_pixels={max_pixels:,}")


def _foreign(encoded: bytes) -> str:
    start = encoded[:200].removeprefix(b"\xef\xbb\xbf").lstrip()
    kinds = (name for magic, name in _FOREIGN.items() if encoded.startswith(magic) or start.startswith(magic))
    kind = "AVIF or HEIC" if _is_iso(encoded) else next(kinds, f"bytes that begin with {encoded[:8].hex(' ')}")
    return f"not a JPEG, PNG or WebP image but {kind}" if encoded else "the image is empty"


def _webp_size(encoded: bytes) -> tuple[int, int]:
    """Width and height from the first chunk (RFC 9649, sections 2.5 to 2.7)."""
    chunk, data = encoded[12:16], encoded[20:30]
    if len(data) == 10 and chunk == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if len(data) == 10 and chunk == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if len(data) == 10 and chunk == b"VP8 ":
        return int.from_bytes(data[6:8], "little") & 0x3FFF, int.from_bytes(data[8:10], "little") & 0x3FFF
    raise DecodeError("damaged: a WebP file without an image")


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to mode RGB; transparent pixels are put on white.

    Whole numbers of 16 and 32 bits are intensities in [0, 65535], floats in [0, 1].

    Raises:
        DecodeError: its file is cut off or damaged, or its numbers are out of that range.
    """
    try:
        image.load()
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.mode.startswith("I") or image.mode == "F":
            return _from_numbers(image)
        if image.mode in ("RGBa", "La"):  # colors that are multiplied by alpha
            image = image.convert(image.mode.upper())
        return _on_white(image) if image.has_transparency_data else image.convert("RGB")
    except _DAMAGE as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"damaged: {str(error) or type(error).__name__}") from error


def _from_numbers(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= white):  # false for NaN
        raise DecodeError(
            f"an image of mode {image.mode} must have values from 0 to {white:g}, but this one has {values.min():g} to {values.max():g}; "
            "scale them"
        )
    scaled = np.floor(values * (255 / white) + 0.5).astype(np.uint8)
    transparent = image.info.get("transparency")  # the value of a PNG's transparent pixels
    if isinstance(transparent, int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
