"""Runs side by side as one HTML page, also as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence

from ray_sassl.evaluation.results import shown
from ray_sassl.files import storage
from ray_sassl.runs.pages.comparing import Comparison, Group, Row, as_json, as_markdown
from ray_sassl.runs.pages.contrast import Contrast, described
from ray_sassl.runs.pages.curves import Line, run_curves
from ray_sassl.runs.pages.markup import Html, element, joined
from ray_sassl.runs.pages.page import Cell, bullets, page, picture, section, side_by_side, table
from ray_sassl.runs.pages.run_page import facts, flat, outcome
from ray_sassl.runs.record import RunRecord

_WIDTH_PX = 1500


def write_comparison(comparison: Comparison, folder: str) -> list[str]:
    """Write `comparison.html`, `comparison.md` and `comparison.json` to the folder; returns their paths."""
    contents = {"html": comparison_page(comparison), "md": as_markdown(comparison), "json": as_json(comparison)}
    paths = []
    for ending, text in contents.items():
        paths.append(storage.join(folder, f"comparison.{ending}"))
        storage.write_text(paths[-1], text)
    return paths


def comparison_page(comparison: Comparison) -> str:
    """One self-contained HTML page."""
    groups = comparison.groups
    runs = [(group, run) for group in groups for run in group.runs]
    parts = [
        element("<h1>{}</h1>", " against ".join(group.name for group in groups[::-1])),
        section("What was run", _runs_table(runs)),
        section("What differs", _differences(groups)),
        section("How good they are", _scores_table(comparison), f"95 % intervals. Differences are against {groups[0].name}."),
        _said(comparison),
        section("Were they worth it", bullets(comparison.against_start), "Against the encoders that the runs have started from."),
        section(
            "While they trained",
            run_curves([Line(run, group.name) for group, run in runs]),
            "Dashed: the loss of an encoder that cannot distinguish images. Losses of different methods cannot be compared.",
        ),
        section("What the networks saw", _views(groups)),
        section("What the protocols show", _pictures(groups)),
    ]
    return page("Runs compared", joined((part for part in parts if part), "\n"), _WIDTH_PX)


def _runs_table(runs: Sequence[tuple[Group, RunRecord]]) -> Html:
    told = [{"ended": outcome(run)[1], "run directory": run.path, **facts(run)} for _, run in runs]
    names = list(dict.fromkeys(name for tree in told for name in tree))
    return table(["", *(run.name for _, run in runs)], [[name, *(tree.get(name, "") for tree in told)] for name in names])


def _differences(groups: Sequence[Group]) -> Html:
    trees = [flat(group.runs[0].config) for group in groups]
    paths = list(dict.fromkeys(path for tree in trees for path in tree if path.partition(".")[0] not in ("scaling", "stream", "tracking")))
    differing = [path for path in paths if len({repr(tree.get(path)) for tree in trees}) > 1]
    if not differing:
        return element("<p>Nothing that shapes the weights.</p>")
    rows = [[path, *(str(tree[path]) if path in tree else "–" for tree in trees)] for path in differing]
    return table(["setting", *(group.name for group in groups)], rows)


def _scores_table(comparison: Comparison) -> Html:
    groups = comparison.groups
    heads: list[str | Cell] = ["protocol", "score", groups[0].name]
    for group in groups[1:]:
        heads += [group.name, "difference"]
    rows: list[list[str | Cell]] = []
    before = None
    for row in comparison.rows:
        cells: list[str | Cell] = [row.protocol if row.protocol != before else "", row.score]
        before = row.protocol
        for number, value in enumerate(row.values):
            cells.append(Cell(*shown(value)) if value else Cell("–"))
            if number:
                contrast = row.contrasts[number]
                cells.append(_difference(row, contrast) if contrast else Cell(""))
        rows.append(cells)
    return table(heads, rows)


def _difference(row: Row, contrast: Contrast) -> Cell:
    return Cell(described(contrast, is_share=row.is_share), contrast.basis if contrast.low is not None else "", contrast.verdict)


def _said(comparison: Comparison) -> Html:
    """Notes, and the commands for missing evaluations."""
    lines: list[str] = [*comparison.notes]
    lines += [
        element("{} was not evaluated by {}: <code>{}</code>", entry.run, entry.protocol, entry.command) for entry in comparison.missing
    ]
    return bullets(lines)


def _views(groups: Sequence[Group]) -> Html | None:
    parts = [(group.name, picture(views, f"views of {group.name}")) for group in groups if (views := group.runs[0].views)]
    return side_by_side(parts) if parts else None


def _pictures(groups: Sequence[Group]) -> Html:
    """The same figure of each group in a row."""
    found: dict[tuple[str, str], list[tuple[str, Html]]] = {}
    for group in groups:
        for scores in group.runs[0].scores:
            for name, png in scores.figures.items():
                found.setdefault((scores.protocol, name), []).append(
                    (group.name, picture(png, f"{scores.protocol} {name} of {group.name}"))
                )
    parts = (element("<h3>{}: {}</h3>\n{}", *names, side_by_side(shown_)) for names, shown_ in found.items())
    return joined(parts, "\n")
