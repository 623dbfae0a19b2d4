"""The content of a run directory, read back for pages and cards: config, curves, scores, pictures and bad rows.

Missing parts are None or empty, and pages say so instead of failing, since runs that died early have pages too.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass, field
from typing import Any

from ray_sassl.config.roles import shaping_part
from ray_sassl.data.quarantine import count_kinds
from ray_sassl.evaluation.results import ProtocolScores, read_scores
from ray_sassl.files import storage
from ray_sassl.files.json_files import LARGEST_NUMBER, as_mapping, as_number, as_texts, read_json, read_json_lines
from ray_sassl.files.paths import check_inside, read_inside
from ray_sassl.files.pictures import read_picture
from ray_sassl.files.safe_yaml import load_file
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import redacted_tree
from ray_sassl.runs.dose import Dose, read_doses
from ray_sassl.runs.files import (
    CONFIG,
    ENVIRONMENT,
    EXPERIMENT,
    FEATURE_RANK,
    METRICS,
    NEIGHBORS,
    NEIGHBORS_RECORD,
    QUARANTINE,
    SUMMARY,
    VIEWS,
    RunDirectoryError,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory.

    Attributes:
        path: The run directory.
        name: Its last component, which names the run.
        config: The tree in `config.yaml`.
        summary: How the run ended, or None if it is running or was killed.
        environment: The machine, packages and command of the run, and the settings of its experiment.
        metrics: One dictionary per line of `metrics.jsonl`, by step.
        scores: One per protocol, by name.
        bad_rows: Rows of the training data in the quarantine, counted by reason.
        views: The picture of views, a PNG or JPEG.
        neighbors: The picture of nearest neighbors of a run without labels.
        feature_rank: The effective rank of the features of such a run.
        doses: How strong the augmentations are; empty for runs of earlier versions.
        left_out: What lies in the directory and could not be used, in words.
    """

    path: str
    name: str
    config: dict[str, Any]
    summary: dict[str, Any] | None
    environment: dict[str, Any]
    metrics: list[dict[str, float]]
    scores: list[ProtocolScores]
    bad_rows: dict[str, int]
    views: bytes | None
    neighbors: bytes | None = None
    feature_rank: float | None = None
    doses: list[Dose] = field(default_factory=list)
    left_out: tuple[str, ...] = ()

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a metric, at the steps where it was logged as a finite number."""
        points = [(line["step"], line[name]) for line in self.metrics if as_number(line.get(name)) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def part(self, *names: str) -> dict[str, Any]:
        """A part of the config, such as `part("method", "fa")`; empty where it is not there or is not a mapping."""
        tree = self.config
        for name in names:
            tree = as_mapping(tree.get(name))
        return tree

    @property
    def recipe(self) -> str:
        """A digest of everything that shapes the weights except the seed: runs with equal digests are seeds of one recipe."""
        return hashlib.sha256(json.dumps(shaping_part(self.config), sort_keys=True).encode()).hexdigest()


def read_run(path: str) -> RunRecord:
    """Read a run directory. What is damaged or foreign is left out, and named.

    Raises:
        RunDirectoryError: there is no `config.yaml`, so no run, or it is not one of a run.
    """
    config_path = storage.join(path, CONFIG)
    if not storage.exists(config_path):
        raise RunDirectoryError(f"{path} is not a run directory: it has no {CONFIG}")
    check_inside(config_path, path)
    config = load_file(config_path)
    if not isinstance(config, dict):
        raise RunDirectoryError(f"{path} is not a run directory: its {CONFIG} does not hold the config of a run")
    left_out: list[str] = []
    metrics, quarantine = (_lines(path, name, key, left_out) for name, key in ((METRICS, "step"), (QUARANTINE, "reason")))
    scores, scores_left_out = read_scores(path)
    record = RunRecord(
        path=path,
        name=storage.name_of(path),
        config=redacted_tree(_plain(config)),
        summary=redacted_tree(_summary(path, left_out)),
        environment=redacted_tree(_environment(path, left_out)),
        metrics=sorted(metrics, key=lambda line: line["step"]),
        scores=scores,
        bad_rows=count_kinds(storage.join(path, QUARANTINE)) if quarantine else {},
        views=_picture(path, VIEWS, left_out),
        neighbors=_picture(path, NEIGHBORS, left_out),
        feature_rank=as_number((_object(path, NEIGHBORS_RECORD, left_out) or {}).get(FEATURE_RANK)),
        doses=read_doses(path, left_out),
        left_out=(*left_out, *scores_left_out),
    )
    for sentence in record.left_out:
        log.warning("%s", sentence)
    return record


def _plain(value: Any) -> Any:
    """A tree of YAML as JSON has it: names of fields are texts, and dates, sets and numbers of a thousand digits become texts."""
    if isinstance(value, dict):
        return {str(_plain(name)): _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, int):
        return value if abs(value) <= LARGEST_NUMBER else hex(value)
    return value if value is None or isinstance(value, str | float) else str(value)


def _lines(run_dir: str, name: str, key: str, left_out: list[str]) -> list[dict[str, Any]]:
    """The lines that hold a number as their step, or a text as their reason."""
    path = storage.join(run_dir, name)
    lines = read_inside(read_json_lines, path, run_dir, left_out)
    if lines is None:
        return []
    whole = [
        line for line in lines.objects if (isinstance(line.get(key), str) if key == "reason" else as_number(line.get(key)) is not None)
    ]
    total = len(lines.objects) + lines.num_damaged
    if len(whole) < total:
        left_out.append(f"{total - len(whole):,} of {total:,} lines of {path} are damaged, and were left out")
    return whole


def _object(run_dir: str, name: str, left_out: list[str]) -> dict[str, Any] | None:
    return read_inside(read_json, storage.join(run_dir, name), run_dir, left_out)


def _summary(run_dir: str, left_out: list[str]) -> dict[str, Any] | None:
    tree = _object(run_dir, SUMMARY, left_out)
    if tree is None:
        return None
    step = tree.get("step")
    if not isinstance(tree.get("status"), str) or not isinstance(step, int) or as_number(step) is None:
        left_out.append(f"{storage.join(run_dir, SUMMARY)} does not say how a run ended")
        return None
    metrics = {name: value for name, value in as_mapping(tree.get("metrics")).items() if as_number(value) is not None}
    reason = tree["reason"] if isinstance(tree.get("reason"), str) else None
    return tree | {"reason": reason, "metrics": metrics, "speed": _speed(as_mapping(tree.get("speed")))}


def _speed(tree: dict[str, Any]) -> dict[str, Any] | None:
    """As `train.speed.Speed` writes it; None where it has another form."""
    text, ranks = tree.get("bottleneck"), tree.get("ranks")
    if not isinstance(text, str) or not isinstance(ranks, list):
        return None
    busy, rates = (_numbers(tree.get(name)) for name in ("busy", "rates"))
    return {"bottleneck": text, "ranks": [_numbers(rank) for rank in ranks], "busy": busy, "rates": rates}


def _numbers(tree: Any) -> dict[str, float]:
    return {name: value for name, value in as_mapping(tree).items() if as_number(value) is not None}


def _environment(run_dir: str, left_out: list[str]) -> dict[str, Any]:
    """As `directory.environment` makes it; what has another form is not there."""
    tree = _object(run_dir, ENVIRONMENT, left_out) or {}
    texts = {name: value for name, value in tree.items() if name in ("python", "platform", "commit") and isinstance(value, str)}
    packages = {name: version for name, version in as_mapping(tree.get("packages")).items() if isinstance(version, str)}
    texts_of = {name: as_texts(tree.get(name)) for name in ("gpus", "command")}
    return {**texts, "packages": packages, **texts_of, EXPERIMENT: as_mapping(tree.get(EXPERIMENT))}


def _picture(run_dir: str, name: str, left_out: list[str]) -> bytes | None:
    try:
        return read_picture(storage.join(run_dir, name), run_dir)
    except UsageError as error:
        left_out.append(str(error))
        return None
