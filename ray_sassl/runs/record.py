"""The content of a run directory, read back for pages and cards: config, curves, scores, pictures and bad rows.

Missing parts are None or empty, and pages say so instead of failing, since runs that died early have pages too.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

from ray_sassl.config.roles import shaping_part
from ray_sassl.data.quarantine import count_kinds
from ray_sassl.evaluation.results import ProtocolScores, read_scores
from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json, read_json_lines
from ray_sassl.files.safe_yaml import load_document
from ray_sassl.runs.directory import CONFIG, ENVIRONMENT, METRICS, QUARANTINE, SUMMARY, VIEWS, RunDirectoryError
from ray_sassl.secrets import redacted_tree


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory.

    Attributes:
        path: The run directory.
        name: Its last component, which names the run.
        config: The tree in `config.yaml`.
        summary: How the run ended, or None if it is running or was killed.
        environment: The machine, packages and command of the run.
        metrics: One dictionary per line of `metrics.jsonl`, by step.
        scores: One per protocol, by name.
        bad_rows: Rows of the training data in the quarantine, counted by reason.
        views: The picture of views, a PNG.
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

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of a metric, at the steps where it was logged as a finite number."""
        points = [
            (line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float) and math.isfinite(line[name])
        ]
        return [step for step, _ in points], [value for _, value in points]

    @property
    def recipe(self) -> str:
        """A digest of everything that shapes the weights except the seed: runs with equal digests are seeds of one recipe."""
        return hashlib.sha256(json.dumps(shaping_part(self.config), sort_keys=True).encode()).hexdigest()


def read_run(path: str) -> RunRecord:
    """Read a run directory.

    Raises:
        RunDirectoryError: there is no `config.yaml`, so no run.
    """
    if not storage.exists(storage.join(path, CONFIG)):
        raise RunDirectoryError(f"{path} is not a run directory: it has no {CONFIG}")
    summary = read_json(storage.join(path, SUMMARY))
    environment = read_json(storage.join(path, ENVIRONMENT)) or {}
    views = storage.join(path, VIEWS)
    return RunRecord(
        path=path,
        name=storage.name_of(path),
        config=redacted_tree(load_document(storage.read_text(storage.join(path, CONFIG)), storage.join(path, CONFIG)) or {}),
        summary=redacted_tree(summary),
        environment=redacted_tree(environment),
        metrics=sorted(
            (line for line in read_json_lines(storage.join(path, METRICS)).objects if "step" in line), key=lambda line: line["step"]
        ),
        scores=read_scores(path),
        bad_rows=count_kinds(storage.join(path, QUARANTINE)),
        views=storage.read_bytes(views) if storage.exists(views) else None,
    )
