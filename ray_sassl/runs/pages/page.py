"""The parts of an HTML page. A page is one self-contained file, with its styles and pictures."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

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


def page(title: str, content: str, width_px: int = 1080) -> str:
    """A whole HTML page."""
    style = _STYLE.replace("1080px", f"{width_px}px")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def section(title: str, content: str | None, note: str = "") -> str:
    """Content under a heading, or an empty string without content."""
    if not content:
        return ""
    said = f'<p class="note">{html.escape(note)}</p>\n' if note else ""
    return f"<h2>{html.escape(title)}</h2>\n{said}{content}"


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


def table(heads: Sequence[str | Cell], rows: Sequence[Sequence[str | Cell]]) -> str:
    """A table; plain text is escaped."""
    lines = [_row(heads, "th"), *(_row(row, "td") for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row(cells: Sequence[str | Cell], tag: str) -> str:
    parts = []
    for cell in (cell if isinstance(cell, Cell) else Cell(cell) for cell in cells):
        kind = f' class="{cell.kind}"' if cell.kind else ""
        detail = f" <small>{html.escape(cell.detail)}</small>" if cell.detail else ""
        parts.append(f"<{tag}{kind}>{html.escape(cell.text)}{detail}</{tag}>")
    return f"<tr>{''.join(parts)}</tr>"


def picture(png: bytes, name: str, most_width_px: int = 1600, share_of_height: float = 1.0) -> str:
    """A picture as an image element.

    Args:
        png: Content of the file.
        name: Description of the picture, as its alternative text.
        most_width_px: Wider pictures are scaled down to this width.
        share_of_height: Share of the height to show, from the top.
    """
    image = Image.open(io.BytesIO(png), formats=["PNG"])
    if image.width > most_width_px or share_of_height < 1:
        image = image.convert("RGB")
        image = image.crop((0, 0, image.width, round(image.height * share_of_height)))
        if image.width > most_width_px:
            image = image.resize((most_width_px, round(image.height * most_width_px / image.width)))
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        png = buffer.getvalue()
    return f'<img alt="{html.escape(name, quote=True)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def side_by_side(parts: Sequence[tuple[str, str]]) -> str:
    """Figures in columns, each with its caption: (caption, content) pairs."""
    columns = "".join(f"<figure><figcaption>{html.escape(caption)}</figcaption>{content}</figure>" for caption, content in parts)
    return f'<div class="columns">{columns}</div>'


def folded(title: str, content: str) -> str:
    """Content that is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>\n{content}\n</details>"
