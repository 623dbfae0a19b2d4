"""Runs side by side: which differences between their scores are more than noise.

Runs that differ only in their seed are one group, in one column. The other groups are compared with the first one.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_sassl.evaluation import Score
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.intervals import score_over_draws
from ray_sassl.evaluation.paired import mean_over_seeds
from ray_sassl.evaluation.protocols import PROTOCOLS
from ray_sassl.evaluation.results import ProtocolScores, path_in, shown
from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.process.console import markdown, markdown_code
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.pages.contrast import Contrast, contrast_of, described, labels_of, units_of
from ray_sassl.runs.pages.starting import against_start
from ray_sassl.runs.record import RunRecord

_DETECT = "detect"
"""Detection, which has its own verb."""
_NO_MATTER = ("name", "device", "num_workers", "num_threads")
"""Settings of protocols that say where they compute, not what."""


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, which differ in their seed only."""

    name: str
    runs: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Row:
    """One score of one protocol.

    Attributes:
        protocol: The protocol's name.
        score: The score's name.
        values: Each group's mean over its runs, with an interval; None if no run of the group has the score.
        num_runs: Number of runs with the score in each group.
        contrasts: The contrast of each group with the first; None for the first, and if one of the two has no value.
    """

    protocol: str
    score: str
    values: tuple[Score | None, ...]
    num_runs: tuple[int, ...]
    contrasts: tuple[Contrast | None, ...]

    @property
    def is_share(self) -> bool:
        """Whether the values are shares in [0, 1]."""
        return any(value.is_share for value in self.values if value is not None)


@dataclass(frozen=True)
class Missing:
    """A protocol that a run was not evaluated by, and the command for it."""

    run: str
    protocol: str
    command: str


@dataclass(frozen=True)
class Comparison:
    """Several groups of runs, compared.

    Attributes:
        groups: The others are compared with the first.
        rows: One per score.
        missing: Scores that some runs have and others do not.
        notes: Notes for reading the rows.
        against_start: Whether runs are better than the encoders that they have started from, a sentence per score.
    """

    groups: tuple[Group, ...]
    rows: tuple[Row, ...]
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    against_start: tuple[str, ...] = ()


def group_runs(runs: Sequence[RunRecord]) -> tuple[Group, ...]:
    """The runs by recipe, in the order given; if all are of one recipe, each run is its own group."""
    by_recipe: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_recipe.setdefault(run.recipe, []).append(run)
    parts = list(by_recipe.values()) if len(by_recipe) > 1 else [[run] for run in runs]
    names: list[str] = []
    for part in parts:
        name = part[0].name if len(part) == 1 else f"{part[0].name} ({len(part)} seeds)"
        names.append(name if name not in names else f"{name} [{sum(name == known.partition(' [')[0] for known in names) + 1}]")
    return tuple(Group(name, tuple(part)) for name, part in zip(names, parts, strict=True))


def compare(runs: Sequence[RunRecord], protocols: Sequence[str] | None = None) -> Comparison:
    """The runs' scores side by side.

    Args:
        protocols: Compare only by these; by default by all that any run was evaluated by.

    Raises:
        UsageError: there are fewer than two runs, two were evaluated on different test sets or with different settings of a protocol, or
            none was evaluated.
    """
    if len(runs) < 2:
        raise UsageError("give at least two runs to compare; `ray-sassl report` describes one")
    return compare_groups(group_runs(runs), protocols)


def compare_groups(groups: Sequence[Group], protocols: Sequence[str] | None = None) -> Comparison:
    """The groups' scores side by side; arguments and errors are those of `compare`."""
    runs = [run for group in groups for run in group.runs]
    names = list(
        dict.fromkeys(scores.protocol for run in runs for scores in run.scores if protocols is None or scores.protocol in protocols)
    )
    if not names:
        asked = f" by {', '.join(protocols)}" if protocols else ""
        commands = "\n".join(f"  ray-sassl evaluate {run.path} {' '.join(protocols or ['all'])}" for run in runs)
        raise UsageError(f"none of the runs was evaluated{asked} yet; do it with --on PROTOCOLS, or with\n{commands}")
    left_out = [sentence for run in runs for sentence in run.left_out]
    rows: list[Row] = []
    missing: list[Missing] = []
    notes: list[str] = []
    for name in names:
        by_group = [[scores for run in group.runs if (scores := _of(run, name))] for group in groups]
        having = [(run, scores) for run in runs if (scores := _of(run, name))]
        _check_settings(having)
        notes += _check_test_sets(having)
        missing += [Missing(run.name, name, _command(run, having[0][1])) for run in runs if _of(run, name) is None]
        rows += [_row(name, score, by_group) for score in dict.fromkeys(score for _, scores in having for score in scores.scores)]
        notes += [
            f"{name} of {run.name}: {', '.join(score for score, of in scores.notes.items() if of == note)} {note}."
            for run, scores in having
            for note in dict.fromkeys(scores.notes.values())
        ]
        steps = {run.name: scores.step for run, scores in having if scores.step is not None}
        if len(set(steps.values())) > 1:
            notes.append(f"{name} evaluated different steps: {', '.join(f'{step:,} of {run}' for run, step in steps.items())}.")
        notes += [
            f"{name} of {run.name} is of step {scores.step:,}, and the run ended at step {run.summary['step']:,}."
            for run, scores in having
            if scores.step is not None and run.summary and run.summary["step"] > scores.step
        ]
    said = [f"{run.name}, {sentence}" for run in runs for sentence in against_start([_of(run, name) for name in names])]
    notes = [*_general_notes(groups, rows), *dict.fromkeys([*notes, *left_out])]
    return Comparison(tuple(groups), tuple(rows), tuple(missing), tuple(notes), tuple(said))


def as_json(comparison: Comparison) -> str:
    """The comparison for programs."""
    groups = comparison.groups
    rows: list[dict[str, Any]] = []
    for row in comparison.rows:
        values = {
            group.name: {"value": value.value, "low": value.low, "high": value.high, "runs": num} if value else None
            for group, value, num in zip(groups, row.values, row.num_runs, strict=True)
        }
        contrasts = {group.name: vars(contrast) for group, contrast in zip(groups, row.contrasts, strict=True) if contrast}
        rows.append({"protocol": row.protocol, "figure": row.score, "values": values, "against_first": contrasts})
    tree = {
        "groups": [{"name": group.name, "runs": [run.path for run in group.runs]} for group in groups],
        "rows": rows,
        "against_start": comparison.against_start,
        "missing": [vars(entry) for entry in comparison.missing],
        "notes": comparison.notes,
    }
    return json.dumps(tree, indent=2)


def as_markdown(comparison: Comparison) -> str:
    """The comparison as a document."""
    groups = comparison.groups
    lines = ["# Runs compared", "", "| | runs |", "|---|---|"]
    lines += [f"| {markdown(group.name)} | {', '.join(markdown_code(run.path, in_table=True) for run in group.runs)} |" for group in groups]
    heads = [groups[0].name, *(head for group in groups[1:] for head in (group.name, f"against {groups[0].name}"))]
    lines += ["", f"| protocol | score | {' | '.join(map(markdown, heads))} |", "|---" * (len(heads) + 2) + "|"]
    for row in comparison.rows:
        cells = [_value(row, 0)]
        for number in range(1, len(groups)):
            contrast = row.contrasts[number]
            cells += [_value(row, number), described(contrast, is_share=row.is_share) if contrast else ""]
        lines.append(f"| {markdown(row.protocol)} | {markdown(row.score)} | {' | '.join(cells)} |")
    lines += ["", "95 % intervals in brackets.", "", *(f"- {markdown(note)}" for note in comparison.notes)]
    if comparison.against_start:
        lines += [
            "",
            "Against the encoders that runs have started from:",
            "",
            *(f"- {markdown(line)}" for line in comparison.against_start),
        ]
    if comparison.missing:
        lines += ["", "Not evaluated yet:", ""]
        lines += [f"- {markdown(entry.run)} by {markdown(entry.protocol)}: {markdown_code(entry.command)}" for entry in comparison.missing]
    return "\n".join(lines) + "\n"


def _value(row: Row, number: int) -> str:
    value = row.values[number]
    if value is None:
        return "–"
    text, interval = shown(value)
    return f"{text} [{interval}]" if interval else text


def _of(run: RunRecord, protocol: str) -> ProtocolScores | None:
    return next((scores for scores in run.scores if scores.protocol == protocol), None)


def _check_settings(having: Sequence[tuple[RunRecord, ProtocolScores]]) -> None:
    first_run, first = having[0]
    for run, scores in having[1:]:
        before, after = ({name: value for name, value in s.settings.items() if name not in _NO_MATTER} for s in (first, scores))
        differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
        if differing:
            told = ", ".join(f"{name} {before.get(name)} and {after.get(name)}" for name in differing)
            raise UsageError(
                f"{first_run.name} and {run.name} were evaluated by {first.protocol} with different settings ({told}), so their "
                f"scores cannot be compared; evaluate again: {_command(run, first)}"
            )


def _check_test_sets(having: Sequence[tuple[RunRecord, ProtocolScores]]) -> list[str]:
    """Notes on the test sets.

    Raises:
        UsageError: they are different images.
    """
    first_run, first = having[0]
    notes = []
    fitted = {str(scores.path_of("train")) for _, scores in having}
    if len(fitted) > 1:
        notes.append(
            f"{first.protocol} was fitted on different train images ({' and '.join(sorted(fitted))}), which alone can make a difference."
        )
    for run, scores in having[1:]:
        one, other = first.predictions, scores.predictions
        paths = [s.path_of("test") for s in (first, scores)]
        same = one is None or other is None or (np.array_equal(one.sample_id, other.sample_id) and np.array_equal(one.labels, other.labels))
        if not same or (paths[0] != paths[1] and (one is None or other is None)):
            sizes = f" ({len(one.labels):,} and {len(other.labels):,} images)" if one is not None and other is not None else ""
            raise UsageError(
                f"{first_run.name} and {run.name} were evaluated by {first.protocol} on different test sets{sizes}: {paths[0]} and "
                f"{paths[1]}. Evaluate both on the same one and compare again: {_command(run, first)}"
            )
        if paths[0] != paths[1]:
            notes.append(
                f"The test images of {first.protocol} are at {paths[0]} and at {paths[1]}; their ids and labels agree, so they are treated "
                "as the same."
            )
    return notes


def _command(run: RunRecord, like: ProtocolScores) -> str:
    """The command that evaluates the run like another one."""
    name = str(like.settings.get("name", like.protocol))
    if name == _DETECT:
        defaults = DetectConfig().model_dump(mode="json")
        changed = [
            f"{field}={json.dumps(value)}" for field, value in like.settings.items() if field in defaults and value != defaults[field]
        ]
        return f"ray-sassl detect {shlex.join([run.path, str(like.data.get('path', 'DATA')), *changed])}"
    words = [name]
    if name in plugin_names(PROTOCOLS):
        defaults = load_plugin(PROTOCOLS, name).Config().model_dump(mode="json")
        words += [
            f"{name}.{field}={json.dumps(value)}"
            for field, value in like.settings.items()
            if field in defaults and value != defaults[field]
        ]
    for split in ("train", "test"):
        path, own = like.path_of(split), path_in(run.part("evaluate"), split)
        if path is not None and path != own:
            words.append(f"evaluate.{split}.path={path}")
    return f"ray-sassl evaluate {shlex.join([run.path, *words])}"


def _row(protocol: str, name: str, by_group: Sequence[Sequence[ProtocolScores]]) -> Row:
    having = [[scores for scores in group if name in scores.scores] for group in by_group]
    values = tuple(_mean(name, group) for group in having)
    contrasts: list[Contrast | None] = [None]
    contrasts += [contrast_of(name, having[0], group) if having[0] and group else None for group in having[1:]]
    return Row(protocol, name, values, tuple(len(group) for group in having), tuple(contrasts))


def _mean(name: str, group: Sequence[ProtocolScores]) -> Score | None:
    """The mean over the group's runs: for one run with its own interval, for several with one over images and seeds."""
    if len(group) < 2:
        return group[0].scores[name] if group else None
    if (units := units_of(name, group)) is not None:
        found = mean_over_seeds(units, labels_of(name, group))
    else:
        found = score_over_draws([scores.scores[name].value for scores in group])
    return replace(group[0].scores[name], value=found.value, low=found.low, high=found.high)


def _general_notes(groups: Sequence[Group], rows: Sequence[Row]) -> list[str]:
    contrasts = [contrast for row in rows for contrast in row.contrasts if contrast is not None and contrast.low is not None]
    notes = []
    if contrasts and all(len(group.runs) == 1 for group in groups):
        notes.append(
            "One run each: the intervals cover other test images only. Another seed changes a difference too, which only runs with other "
            "seeds can show."
        )
    if any("not paired" in contrast.basis for contrast in contrasts):
        notes.append("Without kept predictions, the two intervals were treated as independent, which is too careful for equal test images.")
    if len(contrasts) > 1:
        notes.append(
            f"Of {len(contrasts)} comparisons at 95 %, about {max(1, round(len(contrasts) / 20))} would be called a difference by chance."
        )
    return notes
