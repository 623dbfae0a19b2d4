"""Two studies side by side."""

from __future__ import annotations

from collections.abc import Sequence

from ray_sassl.runs.pages.markup import element, joined
from ray_sassl.runs.pages.page import page, table
from ray_sassl.study import figures
from ray_sassl.study.record import StudyConfig, StudyRecord, TrialRecord, best_trial, figure
from ray_sassl.study.report import body


def comparison(records: Sequence[StudyRecord]) -> list[tuple[str, ...]]:
    """Rows of a table: what it is, then a word for each study."""
    studies = [(record.path, record.study, record.trials) for record in records]
    bests = [best_trial(trials, study.goals[0]) for _, study, trials in studies]
    rows = [
        ("base experiment", *(study.base.name for _, study, _ in studies)),
        ("objective", *(" ".join(str(goal) for goal in study.goals) for _, study, _ in studies)),
        ("searcher, scheduler", *(f"{study.searcher}, {study.scheduler}" for _, study, _ in studies)),
        ("trials", *(f"{len(trials)} of {study.num_trials}" for _, study, trials in studies)),
        ("finished, stopped, failed", *(_outcomes(trials) for _, _, trials in studies)),
        ("epochs of a trial", *(f"{study.base.train.epochs:g}" for _, study, _ in studies)),
        ("minutes of work", *(f"{sum(trial.wall_s for trial in trials) / 60:.1f}" for _, _, trials in studies)),
        ("epochs in all", *(f"{sum(trial.epochs for trial in trials):.1f}" for _, _, trials in studies)),
        ("best", *(_best(study.goals[0].metric, best) for (_, study, _), best in zip(studies, bests, strict=True))),
        ("best trial", *(str(best.number) if best else "–" for best in bests)),
    ]
    names = dict.fromkeys(dimension.name for _, study, _ in studies for dimension in study.space.dimensions)
    rows += [(name, *(str(best.point.get(name, "–")) if best else "–" for best in bests)) for name in names]
    shares = [_shares(study, trials) for _, study, trials in studies]
    rows += [
        (f"importance of {name}", *(f"{found[name]:.0%}" if name in found else "–" for found in shares))
        for name in names
        if any(name in found for found in shares)
    ]
    return rows


def comparison_html(records: Sequence[StudyRecord]) -> str:
    """A page with the table, and both reports side by side."""
    words = table(["", *(record.path for record in records)], comparison(records))
    columns = joined(element("<div>{}</div>", body(record)) for record in records)
    return page("Studies", element('<h1>Studies</h1>{}<div class="columns">{}</div>', words, columns), width_px=1800)


def _best(metric: str, best: TrialRecord | None) -> str:
    return figure(metric, best and best.value(metric))


def _outcomes(trials: Sequence[TrialRecord]) -> str:
    return ", ".join(str(sum(trial.state == state for trial in trials)) for state in ("finished", "stopped", "failed"))


def _shares(study: StudyConfig, trials: Sequence[TrialRecord]) -> dict[str, float]:
    _, values = figures.fair_evaluation(trials, study.goals[0].metric)
    found = figures.importance(study, trials, values)
    return found[1] if found else {}
