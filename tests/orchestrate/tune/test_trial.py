"""A trial's run as a sequence of evaluations, without Ray."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.tune.trial import (
    ENDED,
    PretrainTrial,
    TrialRun,
    TrialSpec,
    copy_folder,
)
from ray_sassl.study.record import trial_dir
from ray_sassl.train.divergence import DivergedError
from ray_sassl.train.loop import EVALUATION
from ray_sassl.types import RunResult
from tests.data.test_object_store import bucket  # noqa: F401 - a fixture
from tests.orchestrate.simulated import NUM_EVALUATIONS, SimulatedRun, simulated_study

NUM_ROWS = 5120


def _run(run_dir: Path, prob: float = 0.7, pretrain: SimulatedRun | None = None, stopping: threading.Event | None = None) -> TrialRun:
    study = simulated_study()
    config = study.space.config(study.base, {"sassl.prob": prob})
    should_stop = stopping.is_set if stopping else lambda: False
    return TrialRun(config, str(run_dir), NUM_ROWS, pretrain or SimulatedRun(), should_stop, lambda metrics: None)


def test_a_run_is_a_sequence_of_evaluations_that_ends_by_itself(tmp_path: Path):
    run = _run(tmp_path)
    results = [run.next() for _ in range(NUM_EVALUATIONS)]
    assert [result[EVALUATION] for result in results] == list(range(1, NUM_EVALUATIONS + 1))
    assert [result.get("done", False) for result in results] == [False] * (NUM_EVALUATIONS - 1) + [True]
    assert results[-1][ENDED] == "finished"
    assert results[-1]["knn_top1"] == pytest.approx(1.0)
    assert results[-1]["attempt_wall_s"] >= NUM_EVALUATIONS * 0.02


@pytest.mark.parametrize(("epochs", "scored"), [(3, (10, 20, 29)), (1, (9,))])
def test_the_end_of_a_run_that_bad_images_made_shorter_is_its_last_evaluation(tmp_path: Path, epochs: int, scored: tuple[int, ...]):
    def pretrain(config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: Any) -> RunResult:
        for number, step in enumerate(scored, 1):
            watch(ProgressUpdate([{"step": step, "loss": 1.0}, {"step": step, "evaluation": number, "knn_top1": step / 100}]))
        return RunResult("finished", scored[-1], run_dir, None, {})

    config = apply_overrides(load_experiment("demo"), [f"train.epochs={epochs}", "train.global_batch=100", "train.evaluate_every=0"])
    run = TrialRun(config, str(tmp_path), 1000, pretrain, lambda: False, lambda metrics: None)
    results = [run.next() for _ in range(epochs)]
    assert [(result[EVALUATION], result["knn_top1"]) for result in results] == [(n, step / 100) for n, step in enumerate(scored, 1)]
    assert results[-1]["done"]
    assert results[-1][ENDED] == "finished"


def test_a_run_that_is_ended_goes_on_from_its_checkpoint_next_time(tmp_path: Path):
    run = _run(tmp_path)
    assert run.next()[EVALUATION] == 1
    run.end()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    run = _run(tmp_path)
    assert run.next()[EVALUATION] == steps[-1] + 1
    run.end()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))


def test_a_stop_of_the_study_reaches_a_run_between_evaluations(tmp_path: Path):
    stopping = threading.Event()
    run = _run(tmp_path, pretrain=SimulatedRun(seconds=1.0), stopping=stopping)
    stopping.set()
    while not (result := run.next()).get("done"):
        pass
    assert result[ENDED] == "interrupted"


def test_a_runs_error_is_raised_where_tune_looks(tmp_path: Path):
    run = _run(tmp_path, prob=0.95, pretrain=SimulatedRun(failing=(2, 1)))
    run.next()
    with pytest.raises(DivergedError, match="nan at step 2"):
        run.next()


def test_a_population_that_is_evaluated_once_an_epoch_leaves_a_checkpoint_at_each_of_its_ends():
    study = simulated_study(scheduler="pbt")
    base = apply_overrides(study.base, ["train.evaluate_every=0"])
    spec = TrialSpec(to_yaml(study.model_copy(update={"base": base})), "", 5120, cast(Any, None), cast(Any, None))
    train = spec.config({"sassl.prob": 0.5}).train
    assert (train.checkpoint_every, train.checkpoints_apart_s) == (0, 0.0)


def test_a_copy_of_a_checkpoint_has_all_its_files(tmp_path: Path):
    source = tmp_path / "step-00000001"
    source.mkdir()
    for name in ("manifest.json", "state.pt", "config.yaml"):
        (source / name).write_text(name)
    copy_folder(str(source), str(tmp_path / "copy"))
    assert {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()} == {
        name: name for name in ("manifest.json", "state.pt", "config.yaml")
    }


@pytest.mark.slow
def test_a_checkpoint_that_is_being_written_to_an_object_store_is_not_handed_on(bucket: str):  # noqa: F811 - the fixture
    study_dir = storage.join(bucket, "studies", "pbt")
    run_dir = trial_dir(study_dir, 0)
    whole, half = (storage.join(run_dir, "checkpoints", f"step-{step:08d}") for step in (1, 2))
    for path in (storage.join(whole, "state.pt"), storage.join(whole, "manifest.json"), storage.join(half, "state.pt")):
        storage.write_text(path, "content")
    assert _trial(study_dir).save_checkpoint("unused")["checkpoint"] == storage.join(run_dir, "exchange", "step-00000001")

    def pretrain(config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: Any) -> RunResult:
        watch(ProgressUpdate([{"step": 2, "evaluation": 2, "knn_top1": 0.5}]))
        stop.wait()
        return RunResult("interrupted", 2, run_dir, None, {})

    run = TrialRun(simulated_study().base, run_dir, NUM_ROWS, pretrain, lambda: False, lambda metrics: None)
    assert run.next()[EVALUATION] == 2
    assert not run.has_checkpoint()
    storage.write_text(storage.join(half, "manifest.json"), "content")
    assert run.has_checkpoint()
    run.end()


@pytest.mark.parametrize("exchange", ["gone", None])
def test_a_member_of_a_population_goes_on_at_its_point_after_a_move_that_was_cut_off(tmp_path: Path, exchange: str | None):
    run_dir = Path(trial_dir(str(tmp_path), 0))
    study = simulated_study(scheduler="pbt")
    seen: list[float] = []

    def pretrain(config: ExperimentConfig, run_dir: str, *, resume: bool, watch: Any, stop: Any) -> RunResult:
        seen.extend([config.sassl.prob, from_yaml(storage.read_text(storage.join(run_dir, "config.yaml"))).sassl.prob])
        return RunResult("finished", 9, run_dir, None, {})

    storage.write_text(run_dir / "config.yaml", to_yaml(study.space.config(study.base, {"sassl.prob": 0.2})))
    trial = _trial(str(tmp_path), pretrain)
    if exchange:
        trial.load_checkpoint({"number": 1, "checkpoint": str(tmp_path / exchange)})
    assert trial.step()[ENDED] == "finished"
    assert seen == [0.7, 0.7]


def _trial(study_dir: str, pretrain: Any = None, prob: float = 0.7) -> PretrainTrial:
    """The actor's state for trial 0 of a population."""
    trial = object.__new__(PretrainTrial)
    trial._own = lambda: None  # it is not an actor
    trial.setup(
        {"number": 0, "point": {"sassl.prob": prob}},
        TrialSpec(to_yaml(simulated_study(scheduler="pbt")), study_dir, NUM_ROWS, cast(Any, None), pretrain),
    )
    return trial
