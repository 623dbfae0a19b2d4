"""The table of an ablation: each arm's scores on test images, and its differences from the arms that it is compared with."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ray_sassl.config.roles import differing_paths
from ray_sassl.evaluation import Score
from ray_sassl.evaluation.corruptions import CORRUPTIONS
from ray_sassl.evaluation.results import shown
from ray_sassl.files import storage
from ray_sassl.process.console import markdown, markdown_code
from ray_sassl.runs.dose import STYLE
from ray_sassl.runs.pages.comparing import Group, compare_groups
from ray_sassl.runs.pages.contrast import Contrast, described
from ray_sassl.runs.pages.markup import Html, element, joined
from ray_sassl.runs.pages.page import Cell, bullets, folded, left_out, page, section, table
from ray_sassl.runs.pages.run_page import flat
from ray_sassl.runs.record import RunRecord, read_run
from ray_sassl.study.ablation import AblationConfig, arm_configs, arm_of, read_ablation
from ray_sassl.study.record import StudyRecord, read_record, trial_dir

_FORMS = ("html", "md", "json")
_HIDDEN = frozenset(f"{name}_top1" for name in CORRUPTIONS)
"""Scores that only the JSON file has."""


@dataclass(frozen=True)
class Line:
    """One arm against another one.

    Attributes:
        arm: The arm.
        against: The other arm; None for an arm that is compared with none.
        is_first: Whether it is the arm's first line.
        num_runs: Evaluated runs of the arm.
        values: The arm's scores by protocol and name.
        contrasts: The differences from the other arm, likewise.
    """

    arm: str
    against: str | None
    is_first: bool
    num_runs: int
    values: Mapping[tuple[str, str], Score]
    contrasts: Mapping[tuple[str, str], Contrast]


@dataclass(frozen=True)
class AblationTable:
    """The state of an ablation.

    Attributes:
        config: What the table shows.
        study: The study and its trials.
        changes: How each arm differs from the base experiment, as overrides.
        doses: The dose of style of each arm that has style, in gray levels, and the share of it at alpha = 0 where it is known.
        lines: Scores and differences.
        missing: Trials without scores, and why.
    """

    config: AblationConfig
    study: StudyRecord
    changes: dict[str, list[str]]
    doses: dict[str, tuple[float, float | None]]
    lines: list[Line]
    missing: list[str]


def read_table(study_dir: str, protocols: Sequence[str] | None = None) -> AblationTable:
    """The table from what is in the study directory, also while the study runs.

    Args:
        protocols: Show these only.

    Raises:
        StudyDirectoryError: there is no ablation.
        UsageError: two runs were evaluated by a protocol with different settings or on different images.
    """
    config, record = read_ablation(study_dir), read_record(study_dir)
    runs: dict[str, list[RunRecord]] = {arm.name: [] for arm in config.arms}
    missing = []
    for trial in record.trials:
        place, arm = trial_dir(study_dir, trial.number), arm_of(trial.point)
        who = f"{arm}, seed {trial.point.get('seed')}"
        if trial.state != "finished":
            missing.append(f"{who} is {trial.state}" + (f": {trial.reason}" if trial.reason else ""))
            continue
        run = read_run(place)
        if any(protocols is None or scores.protocol in protocols for scores in run.scores):
            runs[arm].append(run)
        else:
            missing.append(f"{who} was not evaluated")
    waiting = record.study.num_trials - len(record.trials)
    missing += [f"{waiting} of {record.study.num_trials} runs were not begun"] if waiting > 0 else []
    base = record.study.base.model_dump(mode="json")
    changes = {name: list(_words(base, one.model_dump(mode="json"))) for name, one in arm_configs(record.study).items()}
    doses = {name: dose for name, of_arm in runs.items() if (dose := _dose(of_arm))}
    lines = [line for arm in config.arms for line in lines_of(arm.name, arm.against, runs, protocols)]
    return AblationTable(config, record, changes, doses, lines, missing)


def write_table(table_: AblationTable) -> list[str]:
    """Write `ablation.html`, `ablation.md` and `ablation.json` to the study directory; returns their paths."""
    contents = {"html": as_page(table_), "md": as_markdown(table_), "json": as_json(table_)}
    paths = []
    for ending in _FORMS:
        paths.append(storage.join(table_.study.path, f"ablation.{ending}"))
        storage.write_text(paths[-1], contents[ending])
    return paths


def as_markdown(table_: AblationTable) -> str:
    """The table as a document."""
    lines = [f"# Ablation {markdown(table_.config.name)}", "", markdown(table_.config.about), ""]
    lines += ["| arm | changes | dose of style |", "|---|---|---|"]
    for arm, changes in table_.changes.items():
        words = ", ".join(markdown_code(word, in_table=True) for word in changes) or "none"
        lines.append(f"| {markdown(arm)} | {words} | {markdown(_dose_words(table_, arm))} |")
    lines += lines_as_markdown(table_.lines)
    return "\n".join([*lines, "", *(f"- {markdown(note)}" for note in _notes(table_))]) + "\n"


def lines_as_markdown(lines: Sequence[Line]) -> list[str]:
    """A heading and a table for each protocol, as lines of a document."""
    found: list[str] = []
    for protocol, heads, rows in grids(lines):
        found += ["", f"## {markdown(protocol)}", "", f"| {' | '.join(map(markdown, heads))} |", "|---" * len(heads) + "|"]
        found += [f"| {' | '.join(markdown(f'{text} [{detail}]' if detail else text) for text, detail, _ in row)} |" for row in rows]
    return found


def as_page(table_: AblationTable) -> str:
    """The table as one self-contained HTML page."""
    study = table_.study.study
    arms = [[arm, ", ".join(changes) or "none", _dose_words(table_, arm)] for arm, changes in table_.changes.items()]
    parts: list[Html] = [
        element("<h1>Ablation {}</h1>\n<p>{} Base experiment {}.</p>", table_.config.name, table_.config.about, study.base.name),
        section("Arms", table(["arm", "changes", "dose of style"], [[*row] for row in arms])),
    ]
    for protocol, heads, rows in grids(table_.lines):
        cells = [[Cell(*cell) for cell in row] for row in rows]
        parts.append(section(protocol, table(list(heads), cells)))
    parts += [bullets(_notes(table_)), left_out(table_.study.left_out)]
    settings = "\n".join(f"{path}: {value}" for path, value in flat(study.base.model_dump(mode="json")).items())
    parts.append(folded("The base experiment", element("<pre>{}</pre>", settings)))
    return page(f"Ablation {table_.config.name}", joined((part for part in parts if part), "\n"), 1500)


def as_json(table_: AblationTable) -> str:
    """The table for programs."""
    tree = {
        "name": table_.config.name,
        "base": table_.study.study.base.name,
        "arms": {
            arm: {"changes": changes, "dose": dict(zip(("gray_levels", "at_alpha_0"), table_.doses.get(arm, (None, None)), strict=True))}
            for arm, changes in table_.changes.items()
        },
        "lines": [
            {
                "arm": line.arm,
                "against": line.against,
                "runs": line.num_runs,
                "scores": [
                    {"protocol": protocol, "score": name, **vars(score), "difference": vars(found) if found else None}
                    for (protocol, name), score in line.values.items()
                    for found in (line.contrasts.get((protocol, name)),)
                ],
            }
            for line in table_.lines
        ],
        "missing": table_.missing,
    }
    return json.dumps(tree, indent=2)


def lines_of(
    arm: str, against: Sequence[str], runs: Mapping[str, Sequence[RunRecord]], protocols: Sequence[str] | None = None
) -> Iterator[Line]:
    """One arm against each of the others.

    Args:
        runs: The evaluated runs of each arm.
        protocols: Compare by these only.

    Raises:
        UsageError: two runs were evaluated by a protocol with different settings or on different images.
    """
    for number, other in enumerate(against or (None,)):
        groups = [Group(name, tuple(runs[name])) for name in ((arm,) if other is None else (other, arm)) if runs[name]]
        values: dict[tuple[str, str], Score] = {}
        contrasts: dict[tuple[str, str], Contrast] = {}
        if runs[arm]:
            for row in compare_groups(groups, protocols).rows:
                if (value := row.values[-1]) is not None:
                    values[row.protocol, row.score] = value
                if len(groups) > 1 and (contrast := row.contrasts[-1]) is not None:
                    contrasts[row.protocol, row.score] = contrast
        yield Line(arm, other, number == 0, len(runs[arm]), values, contrasts)


def grids(lines: Sequence[Line]) -> Iterator[tuple[str, tuple[str, ...], list[list[tuple[str, str, str]]]]]:
    """For each protocol its heads, and rows of cells (text, detail, kind)."""
    columns: dict[str, list[str]] = {}
    for protocol, score in dict.fromkeys(key for line in lines for key in line.values):
        columns.setdefault(protocol, []).append(score)
    for protocol, scores in columns.items():
        names = [name for name in scores if name not in _HIDDEN]
        heads = ("arm", "runs", "against", *(head for name in names for head in (name, "difference")))
        rows = []
        for line in lines:
            row = [
                (line.arm if line.is_first else "", "", ""),
                (str(line.num_runs) if line.is_first else "", "", ""),
                (line.against or "", "", ""),
            ]
            for name in names:
                value, contrast = line.values.get((protocol, name)), line.contrasts.get((protocol, name))
                row.append((*shown(value), "") if value and line.is_first else ("", "", ""))
                row.append((described(contrast, is_share=value.is_share), "", contrast.verdict) if contrast and value else ("", "", ""))
            rows.append(row)
        yield protocol, heads, rows


def _notes(table_: AblationTable) -> list[str]:
    contrasts = [contrast for line in table_.lines for contrast in line.contrasts.values()]
    bases = sorted({contrast.basis for contrast in contrasts})
    notes = [f"95 % intervals. Differences are {', or '.join(bases)}."] if bases else ["Nothing was evaluated yet."]
    if len(contrasts) > 1:
        by_chance = max(1, round(len(contrasts) / 20))
        notes.append(f"Of {len(contrasts)} comparisons at 95 %, about {by_chance} would be called a difference by chance.")
    return notes + table_.missing


def _words(before: dict[str, object], after: dict[str, object]) -> Iterator[str]:
    """The fields that differ, as overrides."""
    flat_after = flat(after)
    for path in differing_paths(before, after):
        if path.partition(".")[0] not in ("name", "seed"):
            value = flat_after.get(path, {name: value for name, value in flat_after.items() if name.startswith(f"{path}.")} or None)
            yield f"{path}={json.dumps(value)}"


def _dose(runs: Sequence[RunRecord]) -> tuple[float, float | None] | None:
    """Means over the runs of the dose of their first stylized view."""
    doses = [dose for run in runs if (dose := next((dose for dose in run.doses if dose.what == STYLE), None))]
    if not doses:
        return None
    shares = [dose.reconstruction for dose in doses if dose.reconstruction is not None]
    return statistics.mean(dose.pixels for dose in doses), statistics.mean(shares) if shares else None


def _dose_words(table_: AblationTable, arm: str) -> str:
    if arm not in table_.doses:
        return ""
    pixels, share = table_.doses[arm]
    return f"{pixels:.2f} gray levels" + ("" if share is None else f", {share:.0%} of it at alpha = 0")
