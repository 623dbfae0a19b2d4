"""The scores of a run as files: `PROTOCOL.json`, figures as PNG, and predictions as Parquet. Only this module writes and reads them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_sassl.evaluation import Evaluation, Predictions, Score
from ray_sassl.files import storage
from ray_sassl.files.json_files import as_mapping, as_number, read_json
from ray_sassl.files.own import mark_folder, write_picture
from ray_sassl.files.paths import read_inside
from ray_sassl.files.pictures import read_picture
from ray_sassl.process.errors import UsageError

EVALUATION = "evaluation"
"""The folder in a run directory for `step-NUMBER/PROTOCOL.json` and the files that belong to it."""

_FEATURES = "features"

_FLAT = "evaluate-"
"""The prefix of score files in the run directory itself."""

_OLD_SHARES = ("top1", "top5", "per_class", "share", "accuracy", "AP", "AP50", "AP75")
"""Suffixes of the names of shares, in older files, where a score does not say that it is a share."""

_STEP = re.compile(r"step-\d+")

STARTING_POINT = "starting point"
"""What the encoder is called that a run has started from."""

_BASELINES = (STARTING_POINT, "untrained encoder", "raw pixels")

_MAX_PREDICTIONS_BYTES = 1 << 30


def results_folder(checkpoint: str, step: int) -> str:
    """Where the scores of a checkpoint go unless another folder is given: `evaluation/step-NUMBER` of its run directory."""
    return storage.join(storage.parent(storage.parent(checkpoint)), EVALUATION, f"step-{step:08d}")


def features_folder(checkpoint: str) -> str:
    """Where the features of a run's encoders are kept: `evaluation/features` of its run directory."""
    return storage.join(storage.parent(storage.parent(checkpoint)), EVALUATION, _FEATURES)


def shown(score: Score) -> tuple[str, str]:
    """The score and its interval as text; the second is empty without an interval."""
    text = shown_value(score.value, is_share=score.is_share)
    if score.low is None or score.high is None:
        return text, ""
    low, high = (shown_value(value, is_share=score.is_share) for value in (score.low, score.high))
    return text, f"{low} to {high}"


def shown_value(value: float, *, is_share: bool) -> str:
    """The value as text: a share in percent, any other value as a number."""
    return f"{value:.2%}" if is_share else f"{value:.4g}"


@dataclass(frozen=True)
class ProtocolScores:
    """The scores of one protocol, read back.

    Attributes:
        protocol: The protocol's name, with a suffix if there are several settings.
        scores: Scores of the run's own encoder, by name.
        baselines: Scores of the other encoders, by encoder and name.
        predictions: The predictions, if they were kept.
        step: The checkpoint's step, if it is known.
        settings: The protocol's settings.
        data: What the encoders were evaluated on.
        details: Other results of the run's own encoder.
        notes: What scores of the run's own encoder were measured on, by the score's name.
        figures: PNG or JPEG files by name.
        path: The file that was read.
        start: The scores of the encoder that the run has started from, if it was not a random one.
    """

    protocol: str
    scores: dict[str, Score]
    baselines: dict[str, dict[str, Score]] = field(default_factory=dict)
    predictions: Predictions | None = None
    step: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    figures: dict[str, bytes] = field(default_factory=dict)
    path: str = ""
    start: ProtocolScores | None = None

    def path_of(self, split: str) -> str | None:
        """Where the images of a split were, if it is known."""
        return path_in(self.data, split)


def path_in(data: dict[str, Any], split: str) -> str | None:
    """The path of a split in a tree of data sets; of several paths the JSON list, as an override has it."""
    path = as_mapping(data.get(split)).get("path")
    return path if path is None or isinstance(path, str) else json.dumps(path)


def write_scores(
    folder: str,
    protocol: str,
    settings: dict[str, Any],
    evaluations: Mapping[str, Evaluation],
    *,
    checkpoint: str,
    step: int | None,
    data: dict[str, Any] | None,
    num_bad: int | None,
    detections: pa.Table | None = None,
) -> str:
    """Write `PROTOCOL.json`, and the figures `PROTOCOL-NAME.png` and the predictions or detections `PROTOCOL.parquet` of the first encoder.
    The predictions of the starting point are `PROTOCOL-start.parquet`.

    Args:
        settings: The protocol's settings.
        evaluations: Results by encoder; the first is the run's own.
        checkpoint: The checkpoint of the run's own encoder.
        step: The checkpoint's step; None without a run.
        data: What the encoders were evaluated on; None if the protocol's settings say so.
        num_bad: Images that could not be decoded; None if the details say so.
        detections: One row per detection of the first encoder.

    Returns:
        The path of the JSON file.
    """
    first = next(iter(evaluations.values()))
    files = {}
    mark_folder(folder)
    for name, content in first.figures.items():
        files[name] = f"{protocol}-{name}.png"
        write_picture(storage.join(folder, files[name]), content)
    start = evaluations.get(STARTING_POINT)
    tables = {
        "predictions": (f"{protocol}.parquet", _table(first.predictions)),
        "detections": (f"{protocol}.parquet", detections),
        "start_predictions": (f"{protocol}-start.parquet", _table(start.predictions) if start is not None else None),
    }
    for name, (file_name, table) in tables.items():
        if table is not None:
            files[name] = file_name
            with storage.open_atomic(storage.join(folder, files[name])) as file:
                pq.write_table(table, file)
    record = {
        "checkpoint": checkpoint,
        "step": step,
        "protocol": {"name": protocol, **settings},
        "data": data,
        "bad_images": num_bad,
        "scores": {name: {key: asdict(score) for key, score in found.scores.items()} for name, found in evaluations.items()},
        "details": {name: found.details for name, found in evaluations.items()},
        "notes": {name: found.notes for name, found in evaluations.items() if found.notes},
        "files": files,
    }
    path = storage.join(folder, f"{protocol}.json")
    storage.write_text(path, json.dumps(record, indent=2))
    return path


def _table(predictions: Predictions | None) -> pa.Table | None:
    if predictions is None:
        return None
    return pa.table({"sample_id": predictions.sample_id, "label": predictions.labels, "predicted": predictions.predicted})


def read_scores(run_dir: str) -> tuple[list[ProtocolScores], list[str]]:
    """The newest scores of every protocol in a run directory, in the order of the protocols' names, and what could not be used, in words.

    They are in `evaluation/step-NUMBER/` (the largest step takes precedence), in `evaluation/`, or in the run directory as
    `evaluate-PROTOCOL.json`.
    """
    entries = storage.list_dir(storage.join(run_dir, EVALUATION))
    steps = sorted((entry.path for entry in entries if not entry.is_file and _STEP.fullmatch(storage.name_of(entry.path))), reverse=True)
    folders = [*steps, storage.join(run_dir, EVALUATION)]
    paths = [entry.path for folder in folders for entry in storage.list_dir(folder) if entry.is_file]
    paths += [entry.path for entry in storage.list_dir(run_dir) if entry.is_file and storage.name_of(entry.path).startswith(_FLAT)]
    found: dict[str, ProtocolScores] = {}
    left_out: list[str] = []
    for path in paths:
        stem, _, extension = storage.name_of(path).rpartition(".")
        stem = stem.removeprefix(_FLAT)
        if extension != "json" or stem in found:
            continue
        tree = read_inside(read_json, path, run_dir, left_out) or {}
        if isinstance(tree.get("scores"), dict):
            found[stem] = _protocol_scores(stem, tree, path, run_dir, left_out)
    return [found[name] for name in sorted(found)], left_out


def read_evaluations(folder: str, protocol: str) -> dict[str, Evaluation] | None:
    """What `write_scores` has written to the folder, by encoder; None where that is not there or damaged."""
    left_out: list[str] = []
    path = storage.join(folder, f"{protocol}.json")
    tree = read_inside(read_json, path, folder, left_out) or {}
    if not isinstance(tree.get("scores"), dict):
        return None
    found = _protocol_scores(protocol, tree, path, folder, left_out)
    if left_out:
        return None
    details, notes = as_mapping(tree.get("details")), as_mapping(tree.get("notes"))
    own = next((name for name in tree["scores"] if name not in found.baselines), "")
    first = Evaluation(found.scores, found.figures, found.details, found.predictions, found.notes)
    return {own: first} | {
        name: Evaluation(scores, details=as_mapping(details.get(name)), notes=_notes(notes.get(name)))
        for name, scores in found.baselines.items()
    }


def read_predictions(path: str) -> Predictions:
    """The predictions in a Parquet file with the columns `sample_id`, `label` and `predicted`, by ascending id.

    Raises:
        UsageError: it is damaged, lacks a column, or names a sample twice.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(path, _MAX_PREDICTIONS_BYTES)))
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"cannot read predictions from {path} ({error}); delete it and evaluate again") from error
    columns = ("sample_id", "label", "predicted")
    if missing := set(columns) - set(table.column_names):
        raise UsageError(f"{path} has no column {', '.join(sorted(missing))}; delete it and evaluate again")
    for name in columns:
        if table.column_names.count(name) > 1 or not pa.types.is_integer(table.schema.field(name).type) or table[name].null_count:
            raise UsageError(f"the column {name} of {path} does not hold one whole number for each image; delete it and evaluate again")
    ids = table["sample_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    if len(np.unique(ids)) != len(ids):
        raise UsageError(f"{path} names a sample twice; delete it and evaluate again")
    return Predictions(ids[order], table["label"].to_numpy()[order], table["predicted"].to_numpy()[order])


def _protocol_scores(stem: str, tree: dict[str, Any], path: str, run_dir: str, left_out: list[str]) -> ProtocolScores:
    """The scores in a file's content: of one encoder, or `{encoder: scores}` of several, the run's own first."""
    folder = storage.parent(path)
    files = {name: storage.join(folder, file) for name, file in as_mapping(tree.get("files")).items() if _is_name(file)}
    left_out += [
        f"{path} names {file!r}, which is not the name of a file beside it"
        for file in as_mapping(tree.get("files")).values()
        if not _is_name(file)
    ]
    details, settings, data = (as_mapping(tree.get(name)) for name in ("details", "protocol", "data"))
    scores = tree["scores"]
    by_encoder = {"": scores} if any(_is_score(value) for value in scores.values()) else scores
    by_encoder = {
        encoder: {name: _score(name, value, tree.get("chance"), details.get(encoder)) for name, value in values.items() if _is_score(value)}
        for encoder, values in by_encoder.items()
        if isinstance(values, dict)
    }
    own = next((name for name in by_encoder if name not in _BASELINES and name != "chance"), None)
    step = tree.get("step")
    predictions = files.get("predictions") if "files" in tree else storage.join(folder, f"{stem}.parquet")
    start = None
    if own is not None and STARTING_POINT in by_encoder:
        of_start = _predictions(files.get("start_predictions"), run_dir, left_out)
        start = ProtocolScores(stem, by_encoder[STARTING_POINT], predictions=of_start, details=as_mapping(details.get(STARTING_POINT)))
    return ProtocolScores(
        protocol=stem,
        scores=by_encoder[own] if own is not None else {},
        baselines={name: values for name, values in by_encoder.items() if name != own},
        predictions=_predictions(predictions, run_dir, left_out),
        step=step if isinstance(step, int) and as_number(step) is not None else None,
        settings=settings,
        data=data,
        details=as_mapping(details.get(own)) if own is not None else {},
        notes=_notes(as_mapping(tree.get("notes")).get(own)) if own is not None else {},
        figures=_figures(files, run_dir, left_out),
        path=path,
        start=start,
    )


def _notes(tree: Any) -> dict[str, str]:
    return {name: note for name, note in as_mapping(tree).items() if isinstance(note, str)}


def _is_name(file: Any) -> bool:
    """Whether it names a file in a folder, and leads nowhere else."""
    return isinstance(file, str) and 0 < len(file.encode(errors="replace")) < 256 and file not in (".", "..") and not set("/\0") & set(file)


def _predictions(path: str | None, run_dir: str, left_out: list[str]) -> Predictions | None:
    if path is None or not storage.exists(path):
        return None
    return read_inside(read_predictions, path, run_dir, left_out)


def _figures(files: dict[str, str], run_dir: str, left_out: list[str]) -> dict[str, bytes]:
    figures: dict[str, bytes] = {}
    for name, path in files.items():
        if not path.endswith(".png"):
            continue
        try:
            if (content := read_picture(path, run_dir)) is not None:
                figures[name] = content
        except UsageError as error:
            left_out.append(str(error))
    return figures


def _is_score(value: Any) -> bool:
    return as_number(value.get("value") if isinstance(value, dict) else value) is not None


def _score(name: str, value: Any, chance: Any, details: Any) -> Score:
    """A score as it was written. In older files the name tells whether it is a share, and `chance` applies to every top-1 on test
    images."""
    tree = value if isinstance(value, dict) else {"value": value}
    number, low, high = float(tree["value"]), as_number(tree.get("low")), as_number(tree.get("high"))
    if "is_share" in tree:
        return Score(number, low, high, is_share=bool(tree["is_share"]), chance=as_number(tree.get("chance")))
    target = as_mapping(details).get(name.removesuffix("_top1"))
    known = as_number(target.get("chance", chance) if isinstance(target, dict) else chance)
    has_chance = name.endswith("top1") and not name.startswith("train")
    return Score(number, low, high, is_share=name.endswith(_OLD_SHARES), chance=known if has_chance else None)
