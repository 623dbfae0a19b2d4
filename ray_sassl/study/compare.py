"""Two studies side by side."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ray_sassl.runs.pages.page import page
from ray_sassl.study import figures
from ray_sassl.study.record import StudyConfig, TrialRecord, best_trial
from ray_sassl.study.report import body, figure

Study = tuple[str, StudyConfig, list[TrialRecord]]
"""A study's directory, its config and its trials."""


def comparison(studies: Sequence[Study]) -> list[tuple[str, ...]]:
    """Rows of a table: a title, then a text for each study."""

    def row(name: str, *words: str) -> tuple[str, ...]:
        return (name, *words)

    bests = [best_trial(trials, study.goals[0]) for _, study, trials in studies]
    rows = [
        row("base experiment", *(study.base.name for _, study, _ in studies)),
        row("objective", *(" ".join(str(goal) for goal in study.goals) for _, study, _ in studies)),
        row("searcher, scheduler", *(f"{study.searcher}, {study.scheduler}" for _, study, _ in studies)),
        row("trials", *(f"{len(trials)} of {study.num_trials}" for _, study, trials in studies)),
        row("finished, stopped, failed", *(_outcomes(trials) for _, _, trials in studies)),
        row("epochs of a trial", *(f"{study.base.train.epochs:g}" for _, study, _ in studies)),
        row("minutes of work", *(f"{sum(trial.wall_s for trial in trials) / 60:.1f}" for _, _, trials in studies)),
        row("epochs in all", *(f"{sum(_epochs(trial) for trial in trials):.1f}" for _, _, trials in studies)),
        row("best", *(figure(study.goals[0], best) if best else "–" for (_, study, _), best in zip(studies, bests, strict=True))),
        row("best trial", *(str(best.number) if best else "–" for best in bests)),
    ]
    names = dict.fromkeys(dimension.name for _, study, _ in studies for dimension in study.space.dimensions)
    rows += [row(name, *(str(best.point.get(name, "–")) if best else "–" for best in bests)) for name in names]
    shares = [_shares(study, trials) for _, study, trials in studies]
    rows += [
        row(f"importance of {name}", *(f"{found[name]:.0%}" if name in found else "–" for found in shares))
        for name in names
        if any(name in found for found in shares)
    ]
    return rows


def comparison_html(studies: Sequence[Study]) -> str:
    """A page with the table and both reports side by side."""
    heads = "".join(f"<th>{html.escape(path)}</th>" for path, _, _ in studies)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(word)}</td>" for word in row) + "</tr>" for row in comparison(studies))
    columns = "".join(f"<div>{body(study, path, trials)}</div>" for path, study, trials in studies)
    content = f'<h1>Studies</h1><table><tr><th></th>{heads}</tr>{rows}</table><div class="columns">{columns}</div>'
    return page("Studies", content, width_px=1800)


def _outcomes(trials: Sequence[TrialRecord]) -> str:
    return ", ".join(str(sum(trial.state == state for trial in trials)) for state in ("finished", "stopped", "failed"))


def _epochs(trial: TrialRecord) -> float:
    return trial.curve[-1].metrics.get("epoch", 0.0) if trial.curve else 0.0


def _shares(study: StudyConfig, trials: Sequence[TrialRecord]) -> dict[str, float]:
    _, values = figures.fair_evaluation(trials, study.goals[0].metric)
    found = figures.importance(study, trials, values)
    return found[1] if found else {}
