"""The files of a run directory by name; `directory.py` says what they are for. Imports no torch."""

from __future__ import annotations

from ray_sassl.process.errors import UsageError

INDEX, CONFIG, SUMMARY, ENVIRONMENT, QUARANTINE, VIEWS, NEIGHBORS, METRICS = (
    "index.arrow",
    "config.yaml",
    "summary.json",
    "environment.json",
    "quarantine.jsonl",
    "views.png",
    "neighbors.png",
    "metrics.jsonl",
)


EXPERIMENT = "experiment"
"""In the environment, the settings of the experiment of the run's name, as they were when it began."""
FEATURE_RANK = "feature_rank"
TEACHER = "teacher.safetensors"
"""The frozen teacher of a run that distills one."""

NEIGHBORS_RECORD = "neighbors.json"
"""Holds the effective rank (RankMe) of the encoder's features of some images, for a run without labels."""


class RunDirectoryError(UsageError):
    """The run directory does not fit the command: it contains another run, or none."""
