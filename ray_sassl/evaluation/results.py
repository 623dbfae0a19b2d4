"""Scores as files: `PROTOCOL.json` with pictures and predictions beside it, as evaluations write them and pages read them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json
from ray_sassl.plugins import UsageError

EVALUATION = "evaluation"
"""The folder in a run directory for `step-NUMBER/PROTOCOL.json` and what lies beside it: pictures, and predictions as `PROTOCOL.parquet`."""

_FLAT = "evaluate-"
"""How files of scores that lie in the run directory itself begin."""

_SHARES = ("top1", "top5", "per_class", "share", "accuracy", "AP", "AP50", "AP75")
"""How the names of figures end that are shares in [0, 1]."""

_STEP = re.compile(r"step-\d+")

_BASELINES = ("untrained encoder", "raw pixels", "chance")


@dataclass(frozen=True)
class Figure:
    """A score, with its 95 % interval where the protocol gave one."""

    value: float
    low: float | None = None
    high: float | None = None


def is_share(name: str) -> bool:
    """Whether a figure of that name is a share in [0, 1], which people read in per cent."""
    return name.endswith(_SHARES)


def shown(name: str, figure: Figure) -> tuple[str, str]:
    """The figure and its interval, for people; the second is empty where it has none."""

    def text(value: float) -> str:
        return f"{value:.2%}" if is_share(name) else f"{value:.4g}"

    if figure.low is None or figure.high is None:
        return text(figure.value), ""
    return text(figure.value), f"{text(figure.low)} to {text(figure.high)}"


@dataclass(frozen=True)
class Predictions:
    """What was predicted for each test image: `sample_id`, `labels`, `predicted`, each (N,) int64, by ascending id."""

    sample_id: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """(N,) bool."""
        return self.labels == self.predicted


@dataclass(frozen=True)
class Scores:
    """What one protocol found.

    Attributes:
        protocol: Its name, with what sets it apart where it was run in several ways.
        figures: By name, of the run's own encoder.
        baselines: The same of other encoders that were scored beside it, by their names.
        predictions: Where they were kept.
        step: Of the checkpoint that was scored, where that is known.
        settings: Of the protocol.
        data: What it was measured on.
        details: What else was found for the run's own encoder.
        pictures: PNG files by name.
        path: The file that this was read from.
    """

    protocol: str
    figures: dict[str, Figure]
    baselines: dict[str, dict[str, Figure]] = field(default_factory=dict)
    predictions: Predictions | None = None
    step: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    pictures: dict[str, bytes] = field(default_factory=dict)
    path: str = ""


def read_scores(run_dir: str) -> list[Scores]:
    """The newest scores of every protocol in a run directory, by the protocol's name.

    They lie in `evaluation/step-NUMBER/`, those of the largest step first, else in `evaluation/`, else beside it as `evaluate-PROTOCOL.json`.

    Raises:
        UsageError: a file of scores or predictions is damaged.
    """
    entries = storage.list_dir(storage.join(run_dir, EVALUATION))
    steps = sorted((entry.path for entry in entries if not entry.is_file and _STEP.fullmatch(storage.name_of(entry.path))), reverse=True)
    folders = [*steps, storage.join(run_dir, EVALUATION)]
    paths = [entry.path for folder in folders for entry in storage.list_dir(folder) if entry.is_file]
    paths += [entry.path for entry in storage.list_dir(run_dir) if entry.is_file and storage.name_of(entry.path).startswith(_FLAT)]
    found: dict[str, Scores] = {}
    for path in paths:
        stem, _, extension = storage.name_of(path).rpartition(".")
        stem = stem.removeprefix(_FLAT)
        if extension == "json" and stem not in found and (tree := read_json(path)) is not None and isinstance(tree.get("scores"), dict):
            found[stem] = _scores(stem, tree, path)
    return [found[name] for name in sorted(found)]


def read_predictions(path: str) -> Predictions:
    """The predictions in a Parquet file with the columns `sample_id`, `label` and `predicted`.

    Raises:
        UsageError: it is damaged, lacks a column, or names a sample twice.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} holds no predictions ({error}); delete it, and evaluate again") from error
    if missing := {"sample_id", "label", "predicted"} - set(table.column_names):
        raise UsageError(f"{path} has no column {', '.join(sorted(missing))}; delete it, and evaluate again")
    ids = table["sample_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise UsageError(f"{path} names a sample twice; delete it, and evaluate again")
    return Predictions(ids[order], table["label"].to_numpy()[order], table["predicted"].to_numpy()[order])


def _chance(chance: Any, figures: dict[str, Figure], details: dict[str, Any]) -> dict[str, Figure]:
    """Top-1 by guessing, for each top-1 of test images: of the evaluation data, or of the data set that the figure is named after."""
    found = {}
    for name in figures:
        of_target = details.get(name.removesuffix("_top1"))
        value = of_target.get("chance", chance) if isinstance(of_target, dict) else chance
        if name.endswith("top1") and not name.startswith("train") and isinstance(value, int | float):
            found[name] = Figure(float(value))
    return found


def _scores(stem: str, tree: dict[str, Any], path: str) -> Scores:
    """From a file of scores: those of one encoder, or `{encoder: scores}` of several, the run's own first."""
    folder = storage.parent(path)
    files = {name: storage.join(folder, file) for name, file in (tree.get("files") or {}).items()}
    pictures = {name: storage.read_bytes(file) for name, file in files.items() if file.endswith(".png") and storage.exists(file)}
    predictions = files.get("predictions") if "files" in tree else storage.join(folder, f"{stem}.parquet")
    kept = read_predictions(predictions) if predictions is not None and storage.exists(predictions) else None
    scores = tree["scores"]
    by_encoder = {"": scores} if any(_figure(value) is not None for value in scores.values()) else scores
    figures = {
        encoder: {name: figure for name, value in values.items() if (figure := _figure(value)) is not None}
        for encoder, values in by_encoder.items()
        if isinstance(values, dict)
    }
    own = next((name for name in figures if name not in _BASELINES), None)
    baselines = {name: values for name, values in figures.items() if name != own}
    own_figures = figures.get(own, {}) if own is not None else {}
    details = tree.get("details")
    details = (details.get(own) or {}) if isinstance(details, dict) and own is not None else {}
    if chance := _chance(tree.get("chance"), own_figures, details):
        baselines["chance"] = chance
    settings, data = (value if isinstance(value := tree.get(name), dict) else {} for name in ("protocol", "data"))
    return Scores(
        protocol=stem,
        figures=own_figures,
        baselines=baselines,
        predictions=kept,
        step=tree.get("step"),
        settings=settings,
        data=data,
        details=details,
        pictures=pictures,
        path=path,
    )


def _figure(value: Any) -> Figure | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return Figure(float(value))
    if isinstance(value, dict) and isinstance(value.get("value"), int | float):
        return Figure(float(value["value"]), value.get("low"), value.get("high"))
    return None
