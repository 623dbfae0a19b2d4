"""`report.html` of a study: one self-contained file, made from the study directory alone, even while the study is running."""

from __future__ import annotations

import html
import io
import math
import statistics
from collections.abc import Sequence

from PIL import Image

from ray_sassl.config.files import to_yaml
from ray_sassl.files import storage
from ray_sassl.runs.pages.page import page, picture, section
from ray_sassl.study import figures
from ray_sassl.study.record import StudyConfig, TrialRecord, best_config, best_trial, read_study, read_trials, trial_dir
from ray_sassl.study.space import Objective
from ray_sassl.views.grid import LINE_PX

REPORT = "report.html"
_STRIP_ROWS, _PICTURE_ROWS = 5, 8
"""How many rows of a run's picture of views are shown, and how many it has."""
_STRIP_WIDTH_PX = 1000


def write_report(study_dir: str) -> str:
    """Write the report of the study into its directory; returns the file's path.

    Raises:
        StudyDirectoryError: there is no study.
    """
    study, trials = read_study(study_dir), read_trials(study_dir)
    path = storage.join(study_dir, REPORT)
    storage.write_text(path, page(f"Study {study.name}", body(study, study_dir, trials)))
    return path


def body(study: StudyConfig, study_dir: str, trials: Sequence[TrialRecord]) -> str:
    """The report's sections."""
    goal = study.goals[0]
    evaluation, values = figures.fair_evaluation(trials, goal.metric)
    label = f"{goal.metric} at evaluation {evaluation}"
    compared = f"All trials at evaluation {evaluation}, which {len(values)} of {len(trials)} reached"
    compared += "; the others are left out." if len(values) < len(trials) else "."
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
        _views(study, study_dir, trials, values),
        _best_config(study, trials),
    ]
    return "\n".join(part for part in parts if part)


def _heading(study: StudyConfig, trials: Sequence[TrialRecord]) -> str:
    outcomes = {
        state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed", "interrupted", "running")
    }
    told = ", ".join(f'<span class="{state}">{count} {state}</span>' for state, count in outcomes.items() if count)
    cost = sum(trial.wall_s for trial in trials)
    goals = ", ".join(f"{goal.metric} ({goal.mode})" for goal in study.goals)
    about = (
        f"Base experiment {study.base.name}; objective {goals}; searcher {study.searcher}, scheduler {study.scheduler}, seed {study.seed}."
    )
    return (
        f"<h1>Study {html.escape(study.name)}</h1>\n<p>{len(trials)} of {study.num_trials} trials: {told or 'none yet'}. "
        f"{cost / 60:.1f} minutes of work.<br>\n{html.escape(about)}</p>"
    )


def _table(study: StudyConfig, trials: Sequence[TrialRecord], most: int = 15) -> str | None:
    goal = study.goals[0]
    there = sorted(
        trials,
        key=lambda t: (t.value(goal.metric) is None, t.state != "finished", -goal.sign * (t.value(goal.metric) or 0.0)),
    )
    failed = [trial for trial in there[most:] if trial.state == "failed"]
    if not there:
        return None
    dimensions = [d.name for d in study.space.dimensions if any(d.name in trial.point for trial in trials)]
    names = ["trial", *(o.metric for o in study.goals), "epochs", "minutes", *(".".join(n.split(".")[-2:]) for n in dimensions), "outcome"]
    rows = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + "</tr>"]
    for trial in there[:most] + failed:
        last = trial.curve[-1].metrics.get("epoch", 0.0) if trial.curve else 0.0
        figures_ = [str(trial.number), *(figure(o, trial) for o in study.goals), f"{last:.2f}", f"{trial.wall_s / 60:.1f}"]
        cells = "".join(f'<td class="number">{html.escape(text)}</td>' for text in figures_)
        cells += "".join(f"<td>{html.escape(str(trial.point.get(name, '')))}</td>" for name in dimensions)
        outcome = (
            trial.state + (f": {trial.reason}" if trial.reason else "") + (f" ({trial.attempts} attempts)" if trial.attempts > 1 else "")
        )
        rows.append(f'<tr>{cells}<td class="{trial.state}">{html.escape(outcome)}</td></tr>')
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def figure(goal: Objective, trial: TrialRecord) -> str:
    """The objective's last value as text."""
    value = trial.value(goal.metric)
    if value is None:
        return "–"
    return f"{value:.2%}" if goal.metric.endswith(("top1", "top5")) else f"{value:.4g}"


def _noise(study: StudyConfig, values: dict[int, float]) -> str:
    """A sentence about the standard error of scores due to the number of test images."""
    metric, rows = study.goals[0].metric, study.base.evaluate.online_rows
    if not values or not metric.endswith("_top1"):
        return ""
    share = statistics.mean(values.values())
    error = math.sqrt(share * (1 - share) / rows)
    return f" Scores are of at most {rows:,} validation images, so each has a standard error of at least {error:.2%}."


def _importance(study: StudyConfig, trials: Sequence[TrialRecord], values: dict[int, float], compared: str) -> str:
    found = figures.importance(study, trials, values)
    if found is None:
        least = figures.LEAST_FOR_IMPORTANCE
        return section("Importance of the parameters", f"<p>An estimate needs at least {least} trials at the same evaluation.</p>")
    note = f"{compared} Only parameters that every trial has are compared; with few trials this is a rough estimate."
    return section("Importance of the parameters", found[0], note)


def _cost_note(study: StudyConfig) -> str:
    if len(study.goals) > 1:
        return "The last value of each trial. The front consists of the trials that no other trial beats in all objectives."
    return "images_per_s is the median speed of the trial's training; concurrent trials and other work slowed it."


def _views(study: StudyConfig, study_dir: str, trials: Sequence[TrialRecord], values: dict[int, float]) -> str:
    """The views of the best and the median trial."""
    goal = study.goals[0]
    best = best_trial(trials, goal)
    others = [trial for trial in trials if trial.number in values and trial is not best]
    ranked = sorted(others, key=lambda trial: goal.sign * values[trial.number])
    shown = {"The best trial": best, "The median trial": ranked[len(ranked) // 2] if ranked else None}
    strips = []
    for title, trial in shown.items():
        path = storage.join(trial_dir(study_dir, trial.number), "views.png") if trial else ""
        if trial and storage.exists(path):
            png = storage.read_bytes(path)
            strip = picture(png, "views", _STRIP_WIDTH_PX, _share_of_rows(png))
            strips.append(f"<h3>{title}: {trial.number}, {goal.metric} {figure(goal, trial)}</h3>\n{strip}")
    return section("What the network saw", "\n".join(strips) or None, "Crops, stylized crops and final views of the same images.")


def _share_of_rows(png: bytes) -> float:
    """The share of the height of a picture of views that its first rows take, captions included."""
    height = Image.open(io.BytesIO(png), formats=["PNG"]).height
    return (LINE_PX + (height - LINE_PX) * _STRIP_ROWS / _PICTURE_ROWS) / height


def _best_config(study: StudyConfig, trials: Sequence[TrialRecord]) -> str:
    best = best_trial(trials, study.goals[0])
    if best is None:
        return ""
    overrides = "\n".join(study.space.overrides_of(best.point))
    text = f"# what differs from {study.base.name}\n{overrides}\n\n# best.yaml\n{to_yaml(best_config(study, best))}"
    return section("The best trial as an experiment", f"<pre>{html.escape(text)}</pre>", "ray-sassl pretrain best.yaml")
