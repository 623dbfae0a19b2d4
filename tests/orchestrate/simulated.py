"""Training runs that only sleep: they report like `launch.pretrain`, leave checkpoints, stop when asked, and fail on demand."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from ray_sassl.config.files import to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.tune.search import StudyState
from ray_sassl.study.record import StudyConfig
from ray_sassl.study.space import Float, SearchSpace
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.train.divergence import DivergedError
from ray_sassl.types import RunResult

NUM_EVALUATIONS = 9


def quality(config: ExperimentConfig) -> float:
    """What the simulated run converges to: best at p = 0.7."""
    return 1 - abs(config.sassl.prob - 0.7)


class SimulatedRun:
    """Takes `launch.pretrain`'s arguments and writes each step to `log.jsonl` in the run directory.

    Args:
        seconds: Of one evaluation.
        failing: (evaluation, how often) at which runs with p above 0.9 fail; those with p above 0.8 fail there once.
        is_killed: They do not raise an error; their process is killed, as by the system when memory runs out.
        is_paced: No step is made before `Pace` has seen the one before it, and none at all before it has seen the whole population.
        saving_s: How long a run that is stopped takes to save.
    """

    def __init__(
        self,
        seconds: float = 0.02,
        failing: tuple[int, int] | None = None,
        is_killed: bool = False,
        is_paced: bool = False,
        saving_s: float = 0.0,
    ) -> None:
        self.seconds, self.failing, self.is_killed, self.is_paced, self.saving_s = seconds, failing, is_killed, is_paced, saving_s

    def __call__(self, config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: Any) -> RunResult:
        folder = Path(run_dir)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(config))
        there = sorted(path for path in (folder / "checkpoints").iterdir())
        checkpoint = json.loads((there[-1] / "manifest.json").read_text()) if there else {"step": 0, "score": 0.0}
        step, score = int(checkpoint["step"]), float(checkpoint["score"])
        metrics: dict[str, float] = {}
        while step < NUM_EVALUATIONS:
            # One that has just moved starts at the step of another trial.
            while self.is_paced and not stop.is_set() and _allowed(folder) <= (step if metrics else 0):
                time.sleep(0.01)
            if stop.is_set():
                time.sleep(self.saving_s)
                (folder / "saved").touch()
                return RunResult("interrupted", step, run_dir, None, metrics)
            time.sleep(self.seconds)
            step, score = step + 1, score + quality(config) / NUM_EVALUATIONS
            self._perhaps_fail(config, folder, step)
            metrics = _metrics(config, step, score)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step, "prob": config.sassl.prob, "resume": resume}) + "\n")
            watch(ProgressUpdate([metrics]))
            saved = folder / "checkpoints" / f"step-{step:08d}"
            saved.mkdir(exist_ok=True)
            (saved / "manifest.json").write_text(json.dumps({"step": step, "score": score}))
        if not metrics:  # like a real run, one that had ended already is evaluated again
            watch(ProgressUpdate([_metrics(config, step, score)]))
        return RunResult("finished", step, run_dir, None, metrics)

    def _perhaps_fail(self, config: ExperimentConfig, folder: Path, step: int) -> None:
        if self.failing is None or config.sassl.prob <= 0.8 or step != self.failing[0]:
            return
        often = self.failing[1] if config.sassl.prob > 0.9 else 1
        failures = folder / "failures"
        count = len(failures.read_text()) if failures.exists() else 0
        if count < often:
            failures.write_text("x" * (count + 1))
            if self.is_killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise DivergedError(f"the loss is nan at step {step}")


class Pace:
    """Watches a study and lets its paced trials make their next step. On a busy machine they would end before Tune compares them.

    Args:
        population: Trials that there must be before the first step.
    """

    def __init__(self, study_dir: Path, population: int) -> None:
        self.study_dir, self.population = study_dir, population

    def __call__(self, state: StudyState) -> None:
        if len(state.records) < self.population:
            return
        for record in state.records:
            folder = self.study_dir / "trials" / f"{record.number:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            written = folder / "allowed.new"
            written.write_text(str(max((evaluation.number for evaluation in record.curve), default=0) + 1))
            written.rename(folder / "allowed")


def _allowed(folder: Path) -> int:
    """How many steps in all the trial may have made."""
    try:
        return int((folder / "allowed").read_text())
    except FileNotFoundError:
        return 0


class StylizingRun(SimulatedRun):
    """One that builds its stylizer first, as a real run does."""

    def __call__(self, config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: Any) -> RunResult:
        assert isinstance(config.stylize, StylizerConfig)
        config.stylize.build(torch.device("cpu"))
        return super().__call__(config, run_dir, resume=resume, watch=watch, stop=stop)


def _metrics(config: ExperimentConfig, step: int, score: float) -> dict[str, float]:
    speed = 100.0 / (0.1 + config.sassl.prob)
    return {"step": step, "epoch": float(step), "loss": 5 - score, "images_per_s": speed, "knn_top1": score, "evaluation": step}


def simulated_study(**changes: Any) -> StudyConfig:
    """A study over p, of trials whose evaluations are steps."""
    base = load_experiment("demo")
    base = base.model_copy(
        update={
            "train": base.train.model_copy(update={"epochs": 9 * 128 / 5120, "global_batch": 128, "evaluate_every": 1}),
            "scaling": base.scaling.model_copy(update={"num_workers": 0}),
        }
    )
    space = SearchSpace(parameters=(Float(path="sassl.prob", low=0, high=1),))
    fields: dict[str, Any] = {"objectives": ("knn_top1",), "searcher": "random", "scheduler": "asha", "num_trials": 6, "seed": 1}
    return StudyConfig(name="simulated", base=base, space=space, **(fields | changes))
