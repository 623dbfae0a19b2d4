"""The parts of an HTML page. A page is one self-contained file, with its styles and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import LiteralString

from PIL import Image

from ray_sassl.files.pictures import picture_kind
from ray_sassl.runs.pages.markup import Html, element, joined

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd; }
h3 { font-size: 1em; margin: 1.4em 0 0.3em; }
p.note { color: #666; font-size: 0.9em; } svg, img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85em; } th, td { vertical-align: top; }
th, td { text-align: left; padding: 0.2em 0.8em 0.2em 0; border-bottom: 1px solid #eee; }
td:first-child { white-space: nowrap; }
th.number, td.number { text-align: right; font-variant-numeric: tabular-nums; } td small { color: #777; }
code, pre { font-size: 0.9em; background: #f6f6f6; } code { padding: 0.1em 0.3em; } pre { padding: 1em; overflow-x: auto; }
.wide { overflow-x: auto; } summary { cursor: pointer; color: #2471a3; } figure { margin: 0; }
figcaption { color: #666; font-size: 0.85em; }
.finished, .higher { color: #1b7f4d; } .stopped { color: #b87400; } .failed, .lower { color: #c0392b; } .running { color: #2471a3; }
.interrupted { color: #8e44ad; } .noise { color: #777; }
.columns { display: flex; gap: 2em; } .columns > div, .columns > figure { flex: 1; min-width: 0; }
"""


_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""No scripts, no frames, nothing from elsewhere: the second wall, where something was not escaped after all."""
_MOST_PIXELS = 100_000_000
"""Of a picture that is made smaller for a page."""


def page(title: str, content: Html, width_px: int = 1080) -> str:
    """A whole HTML page."""
    head = element(
        '<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{}</title>\n<style>{}</style>',
        _POLICY,
        title,
        Html(_STYLE.replace("1080px", f"{width_px}px")),
    )
    return element('<!doctype html>\n<html lang="en">\n<head>\n{}\n</head>\n<body>\n{}\n</body>\n</html>\n', head, content)


def section(title: str, content: Html | None, note: str = "") -> Html:
    """Content under a heading, or an empty string without content."""
    if not content:
        return Html()
    return element("<h2>{}</h2>\n{}{}", title, element('<p class="note">{}</p>\n', note) if note else Html(), content)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: Plain text.
        detail: Smaller text after it.
        kind: A CSS class, such as `number`.
    """

    text: str
    detail: str = ""
    kind: str = ""


def table(heads: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]]) -> Html:
    """A table; plain text is escaped."""
    lines = [_row(heads, "th"), *(_row(row, "td") for row in rows)]
    return element('<div class="wide"><table>{}</table></div>', joined(lines))


def _row(cells: Sequence[str | Cell], tag: LiteralString) -> Html:
    parts = []
    for cell in (cell if isinstance(cell, Cell) else Cell(cell) for cell in cells):
        kind = element(' class="{}"', cell.kind) if cell.kind else Html()
        detail = element(" <small>{}</small>", cell.detail) if cell.detail else Html()
        parts.append(element("<{}{}>{}{}</{}>", tag, kind, cell.text, detail, tag))
    return element("<tr>{}</tr>", joined(parts))


def picture(content: bytes, name: str, most_width_px: int = 1600, height_of: Callable[[int], int] = lambda height_px: height_px) -> Html:
    """A picture as an image element, or a word where it cannot be shown.

    Args:
        content: The file, a PNG or JPEG as `files.pictures.read_picture` gives it.
        name: Description of the picture, as its alternative text.
        most_width_px: Wider pictures are scaled down to this width.
        height_of: The height to show, from the top, of the height of the picture.
    """
    try:
        content = _fitted(content, most_width_px, height_of)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return element('<p class="note">{} cannot be shown: {}</p>', name, error)
    data = base64.b64encode(content).decode()
    return element('<img alt="{}" src="data:image/{};base64,{}">', name, picture_kind(content), data)


def _fitted(content: bytes, most_width_px: int, height_of: Callable[[int], int]) -> bytes:
    """The file, or its upper part at a smaller size.

    Raises:
        OSError, ValueError, SyntaxError, DecompressionBombError: it cannot be decoded, or is too large to be.
    """
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG"]) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"it has {image.width:,} x {image.height:,} pixels")
        height_px = min(max(1, height_of(image.height)), image.height)
        if image.width <= most_width_px and height_px == image.height:
            return content
        upper = image.convert("RGB").crop((0, 0, image.width, height_px))
    if upper.width > most_width_px:
        upper = upper.resize((most_width_px, max(1, round(upper.height * most_width_px / upper.width))))
    buffer = io.BytesIO()
    upper.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def bullets(lines: Sequence[str]) -> Html:
    """A list of notes; nothing where there are none."""
    return element('<ul class="note">{}</ul>', joined(element("<li>{}</li>", line) for line in lines)) if lines else Html()


def left_out(sentences: Sequence[str]) -> Html:
    """The section about what was found and is not on the page."""
    return section("What was left out", bullets(sentences))


def side_by_side(parts: Sequence[tuple[str, Html]]) -> Html:
    """Figures in columns, each with its caption: (caption, content) pairs."""
    columns = (element("<figure><figcaption>{}</figcaption>{}</figure>", caption, content) for caption, content in parts)
    return element('<div class="columns">{}</div>', joined(columns))


def folded(title: str, content: Html) -> Html:
    """Content that is shown when its title is clicked."""
    return element("<details><summary>{}</summary>\n{}\n</details>", title, content)
