"""`report.html` of a study: one self-contained file, made from the study directory alone, even while the study is running."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ray_sassl.config.files import to_yaml
from ray_sassl.files import storage
from ray_sassl.files.pictures import read_picture
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.dose import HEADS, read_doses, rows_of
from ray_sassl.runs.pages.markup import Html, element, joined
from ray_sassl.runs.pages.page import Cell, folded, left_out, page, picture, section, table
from ray_sassl.study import figures
from ray_sassl.study.record import StudyConfig, StudyRecord, TrialRecord, best_config, best_trial, figure, ranked, trial_dir
from ray_sassl.views.grid import LINE_PX

REPORT = "report.html"
_STRIP_ROWS, _PICTURE_ROWS = 5, 8
"""How many rows of a run's picture of views are shown, and how many it has."""
_STRIP_WIDTH_PX = 1000


def write_report(record: StudyRecord) -> str:
    """Write the report of the study into its directory; returns the file's path."""
    path = storage.join(record.path, REPORT)
    storage.write_text(path, page(f"Study {record.study.name}", body(record)))
    return path


def body(record: StudyRecord) -> Html:
    """The report's sections."""
    study, trials = record.study, record.trials
    goal = study.goals[0]
    evaluation, values = figures.fair_evaluation(trials, goal.metric)
    label = f"{goal.metric} at evaluation {evaluation}"
    compared = f"All trials at evaluation {evaluation}, which {len(values)} of {len(trials)} reached"
    compared += "; the others are left out." if len(values) < len(trials) else "."
    views, views_left_out = _views(record, evaluation, values)
    parts = [
        _heading(study, trials),
        section("Best trials", _table(study, trials)),
        section(
            "Learning curves",
            figures.learning_curves(trials, goal) if values else None,
            f"A cross is where the scheduler stopped a trial. Numbers are trials.{_noise(study, values)}",
        ),
        section("Strength of the style", figures.strength_map(study, trials, values, label), compared),
        section(
            "Each parameter by itself",
            figures.slices(study, trials, values, label),
            f"{compared} Colors are the trials' outcomes: green finished, orange stopped, blue running.",
        ),
        section("All parameters together", figures.parallel_coordinates(study, trials, values, label), compared),
        _importance(study, trials, values, compared),
        section("Accuracy against cost", figures.pareto(study, trials), _cost_note(study)),
        views,
        left_out([*record.left_out, *views_left_out]),
        _best_config(study, trials),
    ]
    return joined((part for part in parts if part), "\n")


def _heading(study: StudyConfig, trials: Sequence[TrialRecord]) -> Html:
    outcomes = {
        state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed", "interrupted", "running")
    }
    told = joined((element('<span class="{}">{} {}</span>', state, count, state) for state, count in outcomes.items() if count), ", ")
    cost = sum(trial.wall_s for trial in trials)
    goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in study.goals)
    about = (
        f"Base experiment {study.base.name}; objective {goals}; searcher {study.searcher}, scheduler {study.scheduler}, seed {study.seed}."
    )
    return element(
        "<h1>Study {}</h1>\n<p>{} of {} trials: {}. {} minutes of work.<br>\n{}</p>",
        study.name,
        len(trials),
        study.num_trials,
        told or "none yet",
        f"{cost / 60:.1f}",
        about,
    )


def _table(study: StudyConfig, trials: Sequence[TrialRecord], most: int = 15) -> Html | None:
    goal = study.goals[0]
    there = ranked(trials, goal)
    there += [trial for trial in trials if trial not in there]
    failed = [trial for trial in there[most:] if trial.state == "failed"]
    if not there:
        return None
    dimensions = [d.name for d in study.space.dimensions if any(d.name in trial.point for trial in trials)]
    names = ["trial", *(o.metric for o in study.goals), "epochs", "minutes", *(".".join(n.split(".")[-2:]) for n in dimensions), "outcome"]
    rows: list[list[str | Cell]] = []
    for trial in there[:most] + failed:
        numbers = [
            str(trial.number),
            *(figure(o.metric, trial.value(o.metric)) for o in study.goals),
            f"{trial.epochs:.2f}",
            f"{trial.wall_s / 60:.1f}",
        ]
        outcome = (
            trial.state + (f": {trial.reason}" if trial.reason else "") + (f" ({trial.attempts} attempts)" if trial.attempts > 1 else "")
        )
        points = [str(trial.point.get(name, "")) for name in dimensions]
        rows.append([*(Cell(text, kind="number") for text in numbers), *points, Cell(outcome, kind=trial.state)])
    return table(names, rows)


def _noise(study: StudyConfig, values: dict[int, float]) -> str:
    """A sentence about the standard error of scores due to the number of test images."""
    metric, rows = study.goals[0].metric, study.base.evaluate.online_rows
    if not values or not metric.endswith("_top1"):
        return ""
    share = statistics.mean(values.values())
    error = math.sqrt(share * (1 - share) / rows)
    return f" Scores are of at most {rows:,} validation images, so each has a standard error of at least {error:.2%}."


def _importance(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float], compared: str) -> Html:
    found = figures.importance(study, trials, values)
    if found is None:
        least = figures.LEAST_FOR_IMPORTANCE
        text = element("<p>An estimate needs at least {} trials at the same evaluation.</p>", least)
        return section("Importance of the parameters", text)
    note = f"{compared} Only parameters that every trial has are compared; with few trials this is a rough estimate."
    return section("Importance of the parameters", found[0], note)


def _cost_note(study: StudyConfig) -> str:
    if len(study.goals) > 1:
        return "The last value of each trial. The front consists of the trials that no other trial beats in all objectives."
    return "images_per_s is the median speed of the trial's training; concurrent trials and other work slowed it."


def _views(record: StudyRecord, evaluation: int, values: dict[int, float]) -> tuple[Html, list[str]]:
    """What the network saw in the best trial and in the median of those with values, and which pictures are not shown."""
    goal = record.study.goals[0]
    shown: list[tuple[str, TrialRecord, float | None]] = []
    if (best := best_trial(record.trials, goal)) is not None:
        shown.append(("The best trial", best, best.value(goal.metric)))
    if compared := sorted((trial for trial in record.trials if trial.number in values), key=lambda trial: goal.sign * values[trial.number]):
        median = compared[(len(compared) - 1) // 2]
        if median is not best:
            shown.append((f"The median trial at evaluation {evaluation}", median, values[median.number]))
    strips, left_out_ = [], []
    for title, trial, value in shown:
        try:
            content = read_picture(storage.join(trial_dir(record.path, trial.number), "views.png"), record.path)
        except UsageError as error:
            left_out_.append(str(error))
            continue
        if content is not None:
            strip = picture(content, "views", _STRIP_WIDTH_PX, _height_of_rows)
            strips.append(element("<h3>{}: {}, {} {}</h3>\n{}", title, trial.number, goal.metric, figure(goal.metric, value), strip))
            if doses := read_doses(trial_dir(record.path, trial.number), left_out_):
                strips.append(folded("How strong the augmentations are", table(HEADS, list(rows_of(doses)))))
    note = "Crops, stylized crops and final views of the same images."
    return section("What the network saw", joined(strips, "\n"), note), left_out_


def _height_of_rows(height_px: int) -> int:
    """How much of a picture of views its first rows take, captions included."""
    return round(LINE_PX + (height_px - LINE_PX) * _STRIP_ROWS / _PICTURE_ROWS)


def _best_config(study: StudyConfig, trials: Sequence[TrialRecord]) -> Html:
    best = best_trial(trials, study.goals[0])
    if best is None:
        return Html()
    overrides = "\n".join(study.space.overrides_of(best.point))
    text = f"# what differs from {study.base.name}\n{overrides}\n\n# best.yaml\n{to_yaml(best_config(study, best))}"
    return section("The best trial as an experiment", element("<pre>{}</pre>", text), "ray-sassl pretrain best.yaml")
