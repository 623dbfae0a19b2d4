"""The metrics that a run logs to `metrics.jsonl`, TensorBoard and the trackers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json_lines
from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.secrets import redacted
from ray_sassl.train.trackers import InBackground, MLflow, TensorBoard, WandB, close_all, import_tracker

log = logging.getLogger(__name__)


class TrackingConfig(FrozenConfig):
    """Where metrics go besides the terminal and `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files under `tensorboard/` in the run directory."""
    wandb_project: str | None = None
    """A Weights & Biases project (needs `pip install ray-sassl[wandb]`)."""
    mlflow_experiment: str | None = None
    """An MLflow experiment (needs `pip install ray-sassl[mlflow]`); the server is MLFLOW_TRACKING_URI's."""
    prices: Annotated[str | None, LocalPath()] = None
    """A file of what each group's machines cost, like `cluster/prices.yaml`; with it a run on a cluster exports its cost per million
    images."""


class MetricsLog:
    """All of a run's trackers behind one call; used by rank 0 only.

    A resumed run drops the lines of `metrics.jsonl` after its checkpoint, so that every step is in the file once.
    """

    def __init__(self, run_dir: str, config: TrackingConfig, run_config: dict[str, Any], resume_step: int = 0) -> None:
        self.last: dict[str, float] = {}
        name = storage.name_of(run_dir)
        self._lines = _JsonLines(storage.join(run_dir, "metrics.jsonl"), resume_step)
        self._others: list[InBackground] = []
        if config.tensorboard:
            folder = storage.join(run_dir, "tensorboard")
            self._others.append(InBackground("TensorBoard", lambda: TensorBoard(folder, resume_step)))
        if (project := config.wandb_project) is not None:
            wandb = import_tracker("wandb", "Weights & Biases", "wandb_project")
            self._others.append(InBackground("Weights & Biases", lambda: WandB(wandb, project, name, run_config)))
        if (experiment := config.mlflow_experiment) is not None:
            mlflow = import_tracker("mlflow", "MLflow", "mlflow_experiment")
            self._others.append(InBackground("MLflow", lambda: MLflow(mlflow, experiment, name, run_config)))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record scalars by name at a step."""
        self.last |= metrics
        self._lines.log(step, metrics)
        for tracker in self._others:
            tracker.log(step, metrics)

    def flush(self) -> None:
        """Make what was logged so far visible in the run directory: the lines now, event files soon."""
        self._lines.flush()
        for tracker in self._others:
            tracker.flush()

    def close(self) -> None:
        """Flush and end; nothing may be logged afterward. Trackers that do not answer are waited for a few seconds."""
        self._lines.close()
        close_all(self._others)


class _JsonLines:
    """One JSON object a line: step and metrics. On an object store, which cannot append, the whole file is put at each flush.

    Lines that cannot be written, on a full disk or while a store is away, are kept and tried again with the next ones.
    """

    def __init__(self, path: str, resume_step: int) -> None:
        self._path = path
        old = read_json_lines(path).objects if resume_step else []
        lines = [json.dumps(line) for line in old if isinstance(line.get("step"), int | float) and line["step"] <= resume_step]
        content = "".join(line + "\n" for line in lines)
        storage.write_text(path, content)
        self._local = storage.local_path(path)
        self._lines = [] if self._local else lines  # those that the file lacks; on an object store all
        self._end = len(content.encode())
        self._is_complete, self._has_complained = True, False

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._lines.append(json.dumps({"step": step} | metrics))
        self._is_complete = False
        if self._local:
            self.flush()

    def flush(self) -> None:
        if self._is_complete:
            return
        content = "".join(line + "\n" for line in self._lines)
        try:
            if self._local:
                self._append(self._local, content.encode())
            else:
                storage.write_text(self._path, content)
        except (OSError, storage.StorageError) as error:
            self._complain(error)
        else:
            self._is_complete = True

    def close(self) -> None:
        self.flush()
        if not self._is_complete and self._local:
            log.warning("%s lacks the last %d lines", self._path, len(self._lines))

    def _append(self, path: Path, content: bytes) -> None:
        """Write after what is whole; a line that a full disk has torn before is written over."""
        with path.open("r+b") as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(content)
        self._end += len(content)
        self._lines.clear()

    def _complain(self, error: Exception) -> None:
        if not self._has_complained:
            self._has_complained = True
            log.warning(
                "%s cannot be written now (%s). The run goes on, and tries again with the next lines.", self._path, redacted(str(error))
            )
