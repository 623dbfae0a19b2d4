"""The metrics that a run logs to `metrics.jsonl`, TensorBoard and the trackers."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Annotated, Any, Protocol

from ray_sassl.files import storage
from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig, UsageError


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


class Tracker(Protocol):
    """One destination of metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """All of a run's trackers behind one call; used by rank 0 only.

    A resumed run drops the lines of `metrics.jsonl` after its checkpoint, so that every step is in the file once.
    """

    def __init__(self, run_dir: str, config: TrackingConfig, run_config: dict[str, Any], resume_step: int = 0) -> None:
        self.last: dict[str, float] = {}
        name = storage.name_of(run_dir)
        self._trackers: list[Tracker] = [_JsonLines(storage.join(run_dir, "metrics.jsonl"), resume_step)]
        if config.tensorboard:
            self._trackers.append(_TensorBoard(storage.join(run_dir, "tensorboard"), resume_step))
        if config.wandb_project is not None:
            self._trackers.append(_WandB(config.wandb_project, name, run_config))
        if config.mlflow_experiment is not None:
            self._trackers.append(_MLflow(config.mlflow_experiment, name, run_config))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record scalars by name at a step."""
        self.last |= metrics
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def flush(self) -> None:
        """Write everything logged so far to the run directory."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Flush and close; nothing may be logged afterward."""
        for tracker in self._trackers:
            tracker.close()


class _JsonLines:
    """One JSON object per line: step and metrics. An object store cannot append, so there each flush writes the whole file."""

    def __init__(self, path: str, resume_step: int) -> None:
        self._path = path
        old = storage.read_text(path).splitlines() if resume_step and storage.exists(path) else []
        self._lines = [line for line in old if _step_of(line) <= resume_step]
        storage.write_text(path, "".join(line + "\n" for line in self._lines))
        local = storage.local_path(path)
        self._file = local.open("a") if local else None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        line = json.dumps({"step": step} | metrics)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
        else:
            self._lines.append(line)

    def flush(self) -> None:
        if not self._file:
            storage.write_text(self._path, "".join(line + "\n" for line in self._lines))

    def close(self) -> None:
        self.flush()
        if self._file:
            self._file.close()


def _step_of(line: str) -> float:
    """The step of a line; infinity for a line that a power cut has truncated."""
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return math.inf


class _TensorBoard:
    """Event files; for a run directory on an object store they are written to a temporary folder and copied there at each flush."""

    def __init__(self, path: str, resume_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._path = path
        self._temporary = None if storage.local_path(path) else tempfile.TemporaryDirectory()
        self._folder = self._temporary.name if self._temporary else str(storage.local_path(path))
        self._writer = SummaryWriter(self._folder, purge_step=resume_step or None, write_to_disk=True)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()
        if self._temporary:
            for file in Path(self._folder).iterdir():
                storage.write_bytes(storage.join(self._path, file.name), file.read_bytes())

    def close(self) -> None:
        self.flush()
        self._writer.close()
        if self._temporary:
            self._temporary.cleanup()


class _WandB:
    def __init__(self, project: str, name: str, run_config: dict[str, Any]) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("tracking.wandb_project needs Weights & Biases: pip install 'ray-sassl[wandb]'") from error
        self._run = wandb.init(project=project, name=name, id=name, resume="allow", config=run_config)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def flush(self) -> None:
        """Weights & Biases uploads by itself."""

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, experiment: str, name: str, run_config: dict[str, Any]) -> None:
        try:
            import mlflow  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UsageError("tracking.mlflow_experiment needs MLflow: pip install 'ray-sassl[mlflow]'") from error
        self._mlflow = mlflow
        mlflow.set_experiment(experiment)
        found = mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list", max_results=1)
        mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=name)
        mlflow.log_dict(run_config, "config.json")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._mlflow.log_metrics(metrics, step=step)

    def flush(self) -> None:
        """MLflow writes immediately."""

    def close(self) -> None:
        self._mlflow.end_run()
