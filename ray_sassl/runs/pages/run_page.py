"""`report.html` of a run: made from the run directory alone, even while the run is training or after it died early."""

from __future__ import annotations

import shlex
import time
from datetime import timedelta
from typing import Any

import yaml

from ray_sassl.evaluation.results import ProtocolScores, shown, shown_value
from ray_sassl.experiments import load_experiment, summaries
from ray_sassl.files import storage
from ray_sassl.files.json_files import as_number
from ray_sassl.process.stages import RANK_STAGES, STREAM_STAGES
from ray_sassl.runs.dose import HEADS, NOTE, STYLE, rows_of
from ray_sassl.runs.files import EXPERIMENT, METRICS
from ray_sassl.runs.pages.curves import Line, run_curves
from ray_sassl.runs.pages.markup import Html, element, joined
from ray_sassl.runs.pages.page import Cell, bullets, folded, left_out, page, picture, section, table
from ray_sassl.runs.pages.starting import against_start
from ray_sassl.runs.record import RunRecord, read_run

REPORT = "report.html"

_START_NOTE = "Against the encoder that the run has started from, image by image on the same test images; not over other training runs."


def write_run_report(run_dir: str, out: str | None = None) -> str:
    """Write the report of the run; returns its path.

    Args:
        out: The file; by default `report.html` in the run directory.

    Raises:
        RunDirectoryError: there is no run.
    """
    path = out or storage.join(run_dir, REPORT)
    run = read_run(run_dir)
    storage.write_text(path, page(f"Run {run.name}", run_body(run)))
    return path


def run_body(run: RunRecord) -> Html:
    """The report's sections."""
    views = picture(run.views, "views of some training images") if run.views else None
    parts = [
        element("<h1>Run {}</h1>\n<p>{}</p>", run.name, _outcome_line(run)),
        table(["", ""], _facts(run)),
        section(
            "What differs from the experiment",
            _differences(run),
            f"Experiment {run.config.get('name')}; settings that are not listed are the same there.",
        ),
        section("How good it is", _scores(run), _scores_note(run)),
        section("Was it worth it", bullets(against_start(run.scores)), _START_NOTE),
        section("What the encoder holds to be alike", _neighbors(run), _rank_note(run)),
        section(
            "While it trained",
            run_curves([Line(run, run.name)]) or element("<p>Nothing was logged yet.</p>"),
            "Dashed: the loss of an encoder that cannot distinguish images.",
        ),
        section("Where the time went", _speed(run), "Of the last epoch. Shares are of each worker's time."),
        section("What the network saw", views, "Crops, stylized crops and finished views of the same images."),
        section("How strong the augmentations are", table(HEADS, list(rows_of(run.doses))) if run.doses else None, NOTE),
        section("Images that could not be used", _quarantine(run)),
        section("What the protocols show", _pictures(run.scores)),
        left_out(run.left_out),
        folded("The whole config", element("<pre>{}</pre>", yaml.safe_dump(run.config, sort_keys=False, width=120))),
    ]
    return joined((part for part in parts if part), "\n")


def outcome(run: RunRecord) -> tuple[str, str]:
    """The run's status, and a sentence about it."""
    last = run.metrics[-1] if run.metrics else None
    epochs = as_number(run.part("train").get("epochs"))
    reached = ""
    if last is not None:
        epoch = next((line["epoch"] for line in reversed(run.metrics) if as_number(line.get("epoch")) is not None), None)
        reached = f"step {int(last['step']):,}" + (f", epoch {epoch:.4g} of {epochs:g}" if epoch is not None and epochs else "")
    if run.summary is not None:
        reason = f": {run.summary['reason']}" if run.summary.get("reason") else ""
        return run.summary["status"], f"{run.summary['status']} at step {run.summary['step']:,}{reason}"
    if last is None:
        return "running", "it has logged nothing yet"
    entry = storage.stat(storage.join(run.path, METRICS))
    ago = f", logged {_ago(time.time() - entry.mtime_ns / 1e9)} before this page was made" if entry is not None else ""
    return "running", f"no summary yet, so it is running or was killed: {reached}{ago}"


def _outcome_line(run: RunRecord) -> Html:
    kind, text = outcome(run)
    return element('<span class="{}">{}</span>', kind, text[:1].upper() + text[1:])


def _ago(seconds: float) -> str:
    return str(timedelta(seconds=max(0, round(seconds))))


def facts(run: RunRecord) -> dict[str, str]:
    """The main settings of the run, in a few lines."""
    config = run.config
    data, train, stylize, sassl = (run.part(name) for name in ("data", "train", "stylize", "sassl"))
    style = "none"
    if stylize.get("name", "identity") != "identity":
        style = (
            f"{stylize['name']}, {sassl.get('views')} view, probability {sassl.get('prob')}, alpha {sassl.get('alpha')}, "
            f"beta {sassl.get('beta')}, styles: {sassl.get('style_source')}"
        )
    feature = run.part("method", "fa", "augmentation").get("name", "none")
    epochs = as_number(train.get("epochs")) or 0
    found = {
        "experiment": f"{config.get('name')}, seed {config.get('seed')}",
        "method": str(run.part("method").get("name")),
        "feature augmentation": "none" if feature in ("none", "identity") else f"{feature}, {run.part('method', 'fa').get('architecture')}",
        "style augmentation": style,
        "backbone": str(run.part("backbone").get("name")),
        "data": str(data.get("path")),
        "length": f"{epochs:g} epoch{'' if epochs == 1 else 's'} planned, {train.get('global_batch')} images a step",
    }
    if dose := next((dose for dose in run.doses if dose.what == STYLE), None):
        found["dose of style"] = f"{dose.pixels:.2f} gray levels" + (
            "" if dose.reconstruction is None else f", {dose.reconstruction:.0%} of it without the partner's style (alpha = 0)"
        )
    if trained := training_s(run):
        found["time training"] = _ago(trained)
    environment = run.environment
    if environment.get("commit"):
        found["commit"] = environment["commit"]
    if environment.get("gpus"):
        found["GPUs"] = ", ".join(environment["gpus"])
    if packages := environment.get("packages"):
        found["versions"] = ", ".join(f"{name} {version}" for name, version in packages.items() if name in ("ray-sassl", "torch", "ray"))
    if command := environment.get("command"):
        found["command"] = " ".join(command)
    return found


def training_s(run: RunRecord) -> float:
    """Seconds between the first and the last logged step, from the logged speed; stops and restarts are not counted."""
    steps, speeds = run.curve("images_per_s")
    batch = as_number(run.part("train").get("global_batch")) or 0
    return sum((step - before) * batch / speed for before, step, speed in zip([0, *steps], steps, speeds, strict=False) if speed > 0)


def _facts(run: RunRecord) -> list[list[str | Cell]]:
    return [[name, text] for name, text in facts(run).items()]


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of dictionaries, by their dotted paths."""
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {path: leaf for name, part in tree.items() for path, leaf in flat(part, f"{prefix}.{name}" if prefix else str(name)).items()}


def _differences(run: RunRecord) -> Html:
    name = run.config.get("name")
    if str(name) not in summaries():
        text = "<p>No experiment is named {}, so there is nothing to compare it with; the whole config is below.</p>"
        return element(text, name)
    experiment = run.environment.get(EXPERIMENT) or load_experiment(str(name)).model_dump(mode="json")  # earlier versions have not kept it
    before, here = flat(experiment), flat(run.config)
    paths = [path for path in {**before, **here} if before.get(path) != here.get(path)]
    if not paths:
        return element("<p>Nothing.</p>")
    return table(["setting", "experiment", "this run"], [[path, _word(before, path), _word(here, path)] for path in paths])


def _word(tree: dict[str, Any], path: str) -> str:
    return str(tree[path]) if path in tree else "–"


def _scores(run: RunRecord) -> Html:
    if not run.scores:
        return element("<p>It has not been evaluated: <code>ray-sassl evaluate {} all</code></p>", shlex.quote(run.path))
    others = list(dict.fromkeys(name for scores in run.scores for name in scores.baselines))
    has_chance = any(score.chance is not None for scores in run.scores for score in scores.scores.values())
    has_notes = any(scores.notes for scores in run.scores)
    rows: list[list[str | Cell]] = []
    for scores in run.scores:
        title = scores.protocol
        for name, score in scores.scores.items():
            cells: list[str | Cell] = [Cell(*shown(score))]
            for other in others:
                beside = scores.baselines.get(other, {}).get(name)
                cells.append(Cell(*shown(beside)) if beside else Cell(""))
            if has_chance:
                cells.append(Cell("" if score.chance is None else shown_value(score.chance, is_share=score.is_share)))
            if has_notes:
                cells.append(scores.notes.get(name, ""))
            step = f"{scores.step:,}" if title and scores.step is not None else ""
            rows.append([title, name, *cells, Cell(step, kind="number")])
            title = ""
    heads = ["protocol", "score", "this run", *others, *(["chance"] if has_chance else []), *(["of"] if has_notes else [])]
    return table([*heads, Cell("step", kind="number")], rows)


def _neighbors(run: RunRecord) -> Html | None:
    return picture(run.neighbors, "images with their nearest neighbors") if run.neighbors else None


def _rank_note(run: RunRecord) -> str:
    rank = f" The features of the images span about {run.feature_rank:.1f} directions (RankMe)." if run.feature_rank is not None else ""
    return f"Some training images, each with those whose features are nearest, and their cosine similarity.{rank}"


def _scores_note(run: RunRecord) -> str:
    if not run.scores:
        return ""
    sets = {path for scores in run.scores if (path := scores.path_of("test"))}
    on = f" Test images: {', '.join(sorted(sets))}." if sets else ""
    return f"95 % intervals over test images; they do not cover other training runs.{on}"


def _speed(run: RunRecord) -> Html | None:
    speed = (run.summary or {}).get("speed")
    if speed is None:
        return None
    workers = table(
        ["worker", *(Cell(stage, kind="number") for stage in RANK_STAGES)],
        [
            [str(number), *(Cell(f"{rank[stage]:.1%}" if stage in rank else "", kind="number") for stage in RANK_STAGES)]
            for number, rank in enumerate(speed["ranks"])
        ],
    )
    heads: list[str | Cell] = ["stage of the stream", Cell("processes in it", kind="number"), Cell("images/s of one", kind="number")]
    rows: list[list[str | Cell]] = [
        [
            stage,
            Cell(f"{speed['busy'][stage]:.2f}", kind="number"),
            Cell(f"{speed['rates'][stage]:,.0f}" if stage in speed["rates"] else "", kind="number"),
        ]
        for stage in STREAM_STAGES
        if stage in speed["busy"]
    ]
    parts = [element("<p>{}</p>", speed["bottleneck"]), workers, *([table(heads, rows)] if rows else [])]
    return joined(parts, "\n")


def _pictures(all_scores: list[ProtocolScores]) -> Html:
    parts = []
    for scores in all_scores:
        for name, png in scores.figures.items():
            parts.append(element("<h3>{}: {}</h3>\n{}", scores.protocol, name, picture(png, f"{scores.protocol} {name}")))
    return joined(parts, "\n")


def _quarantine(run: RunRecord) -> Html:
    if not run.bad_rows:
        return element("<p>None.</p>")
    total = sum(run.bad_rows.values())
    rows: list[list[str | Cell]] = [
        [reason or "no reason given", Cell(f"{count:,}", kind="number")] for reason, count in run.bad_rows.items()
    ]
    return table(["reason", Cell("images", kind="number")], [*rows, ["all", Cell(f"{total:,}", kind="number")]])
