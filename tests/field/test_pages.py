"""Pages made from what strangers wrote: everything is text, and nothing is taken from beside the directory."""

from __future__ import annotations

import ast
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import ray_sassl
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.pages.comparing import as_markdown
from tests.exporting.conftest import MakeRun, make_run
from tests.field.hostile import edit_trial, make_hostile_study, png, retell

__all__ = ["make_run"]

WORDS = {
    "markup": "\"><script>alert(1)</script><img src=x onerror=alert(2)>' onmouseover='alert(3)' "
    "--></title></style></pre></svg>]]><iframe srcdoc=x>",
    "formula": r"$\frac{$ {0} %s | ` $",
    "terminal": "\x1b]0;owned\x07\u202e\x00\udce9\r\n\u2028",
}
OURS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "span", "br", "div", "table", "tr", "th", "td", "small"),
    *("ul", "li", "code", "pre", "details", "summary", "figure", "figcaption", "img", "svg"),
}
MATPLOTLIBS = {
    *("metadata", "rdf:rdf", "cc:work", "cc:agent", "dc:type", "dc:date", "dc:format", "dc:creator", "dc:title"),
    *("defs", "g", "path", "use", "clippath", "rect", "image", "style"),
}


class _Page(HTMLParser):
    """What a browser would make of a page, as far as it can do harm."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures = 0
        self.policy = ""
        self.text = text
        self._in_svg = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in (MATPLOTLIBS | {"svg"} if self._in_svg else OURS), f"a <{tag}> at {self.getpos()}"
        self._in_svg += tag == "svg"
        for name, value in attrs:
            assert not name.startswith("on"), f"{name} at {self.getpos()}"
            if name in ("href", "xlink:href", "src", "srcset", "action", "data"):
                assert (value or "").startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), value
        self.pictures += tag == "img"
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policy = dict(attrs)["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._in_svg -= tag == "svg"


def _page(path: str) -> _Page:
    text = Path(path).read_text()
    page = _Page(text)
    assert "default-src 'none'" in page.policy
    assert "script" not in page.policy
    assert text.index("Content-Security-Policy") < text.index("<title>")
    assert not set("\x1b\x07\x00\u202e\u2028\r") & set(text)
    return page


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_a_run_and_a_comparison_of_runs_show_foreign_texts_as_texts(word: str, make_run: MakeRun, tmp_path: Path):
    runs = [make_run(name="one"), make_run("seed=1", name="two")]
    for run in runs:
        retell(Path(run), word)
    for run in runs:
        page = _page(ray_sassl.report(run))
        assert page.pictures == 3  # the views, and one for each of two protocols
        assert "elsewhere" not in page.text
        assert "is not the name of a file beside it" in page.text
    result = ray_sassl.compare(runs, str(tmp_path / "comparison"))
    page = _page(next(path for path in result.paths if path.endswith(".html")))
    assert page.pictures == 6
    table = [line for line in as_markdown(result.comparison).split("\n") if line.startswith("|") and "knn" in line]
    assert len(table) == 2
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    json.loads(Path(next(path for path in result.paths if path.endswith(".json"))).read_text())


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_a_study_and_a_comparison_of_studies_show_foreign_texts_as_texts(word: str, tmp_path: Path):
    studies = [make_hostile_study(tmp_path / name, word, num_trials) for name, num_trials in (("one", 9), ("two", 3))]
    edit_trial(tmp_path / "one", 1, state=word)
    edit_trial(tmp_path / "one", 2, curve=[{"number": 1, "metrics": {"knn_top1": word}, "wall_s": 1}])
    result = ray_sassl.report_study(studies[0])
    page = _page(result.report)
    assert page.pictures == 2
    assert page.text.count("; the trial is left out") == 2
    assert len(result.trials) == 8
    rows = ray_sassl.compare_studies(*studies, str(tmp_path / "compare.html"))
    assert len({len(row) for row in rows}) == 1
    assert _page(str(tmp_path / "compare.html")).pictures == 4


def test_a_picture_is_read_only_from_the_directory_and_must_be_a_picture(make_run: MakeRun, tmp_path: Path):
    run, private = Path(make_run()), tmp_path / "private.png"
    private.write_bytes(png(77, 33))
    folder = run / "evaluation" / "step-00000007"
    folder.mkdir(parents=True)
    (folder / "linked.png").symlink_to(private)
    (folder / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n")
    (folder / "photo.png").write_bytes(_jpeg())
    files = {
        "a": "../../../private.png",
        "b": str(private),
        "c": "linked.png",
        "d": "postscript.png",
        "e": "photo.png",
        "f": "file://x.png",
    }
    (folder / "knn.json").write_text(json.dumps({"scores": {"s": {"top1": 0.5}}, "files": files}))
    (run / "views.png").symlink_to(private)
    page = _page(ray_sassl.report(str(run)))
    assert page.pictures == 1
    assert "data:image/jpeg;base64," in page.text
    for word in ("private.png", "linked.png", "postscript.png", "file://x.png", "views.png"):
        assert word in page.text[page.text.index("What was left out") :]
    (run / "views.png").unlink()
    (run / "views.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert "views.png is not shown: it is neither a PNG nor a JPEG" in _page(ray_sassl.report(str(run))).text


def _jpeg() -> bytes:
    import io

    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "summary.json", "environment.json"])
def test_a_file_that_is_a_link_out_of_the_run_directory_does_not_come_into_the_page(name: str, make_run: MakeRun, tmp_path: Path):
    run = Path(make_run())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes((run / name).read_bytes())
    (run / name).unlink()
    (run / name).symlink_to(elsewhere)
    if name == "config.yaml":
        with pytest.raises(UsageError, match="it does not lie in"):
            ray_sassl.report(str(run))
    else:
        assert f"{name} is not read: it does not lie in" in _page(ray_sassl.report(str(run))).text


def test_a_damaged_or_too_large_picture_is_replaced_by_a_word(make_run: MakeRun):
    run = Path(make_run())
    for content in (png(2000, 10)[:60], _bomb()):
        (run / "views.png").write_bytes(content)
        page = _page(ray_sassl.report(str(run)))
        assert page.pictures == 0
        assert "cannot be shown" in page.text


def _bomb() -> bytes:
    """The head of a PNG that says it has 60,000 x 60,000 pixels."""
    import struct
    import zlib

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IEND\xaeB`\x82"


def test_html_is_made_in_one_place():
    """Where `Html` is called on anything else, a foreign text may become a part of the page."""
    root = Path(ray_sassl.__file__).parent
    made = {
        (str(path.relative_to(root)), ast.unparse(node))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Html" and node.args
    }
    assert {(path, call) for path, call in made if path != "runs/pages/markup.py"} == {
        ("runs/pages/page.py", "Html(_STYLE.replace('1080px', f'{width_px}px'))"),
        ("runs/pages/curves.py", "Html(printable(text[text.index('<svg'):], keep='\\n\\t'))"),
    }
