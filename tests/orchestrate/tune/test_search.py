"""Whole studies on Ray Tune: of simulated runs, and of real ones."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.tune.search import Searcher

from benchmarks.measuring import tree
from benchmarks.processes import kill_driver
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.tune.scheduler import build_scheduler
from ray_sassl.orchestrate.tune.search import RecordSearcher, StudyState, search, too_many_failures
from ray_sassl.process.errors import UsageError
from ray_sassl.study.record import Evaluation, read_trials
from ray_sassl.study.space import Choice, Float, SearchSpace
from ray_sassl.style.stylizers.magenta import WEIGHTS
from ray_sassl.style.weights import MissingWeightsError, weights_path
from tests.orchestrate.conftest import small_study
from tests.orchestrate.shared_cluster import stop
from tests.orchestrate.simulated import NUM_EVALUATIONS, Pace, SimulatedRun, StylizingRun, simulated_study

pytestmark = pytest.mark.ray


def _entries(study_dir: Path, number: int) -> list[dict]:
    log = study_dir / "trials" / f"{number:04d}" / "log.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


def _steps(study_dir: Path, number: int) -> list[int]:
    return [entry["step"] for entry in _entries(study_dir, number)]


def test_a_study_runs_its_trials_and_stops_the_bad_ones_early(ray_cluster: None, tmp_path: Path):
    shown: list[int] = []

    def watch(state: StudyState) -> None:
        shown.append(sum(trial.state == "running" for trial in state.records))

    state = search(simulated_study(num_trials=8, max_concurrent=1), str(tmp_path), run=SimulatedRun(), watch=watch)
    outcomes = [trial.state for trial in state.records]
    assert outcomes.count("finished") >= 1
    assert outcomes.count("stopped") >= 2
    assert set(outcomes) == {"finished", "stopped"}
    assert max(shown) <= 1
    assert read_trials(str(tmp_path)) == state.records
    for trial in state.records:
        evaluations = [evaluation.number for evaluation in trial.curve]
        assert evaluations == list(range(1, len(evaluations) + 1))
        assert (len(evaluations) == NUM_EVALUATIONS) == (trial.state == "finished")
        assert trial.cpu_s is not None
        assert trial.wall_s > 0
        # Nothing waits for a checkpoint at a trial's end, during which it would train on.
        assert not (tmp_path / "trials" / f"{trial.number:04d}" / "exchange").exists()
    assert {"trials.parquet", "trials.csv", "best.yaml", "study.yaml"} <= {path.name for path in tmp_path.iterdir()}
    again = search(simulated_study(num_trials=4, max_concurrent=1), str(tmp_path / "again"), run=SimulatedRun())
    assert [(trial.point, trial.state, len(trial.curve)) for trial in again.records] == [
        (trial.point, trial.state, len(trial.curve)) for trial in state.records[:4]
    ]


def test_trials_that_are_stopped_last_save_before_the_study_ends(ray_cluster: None, tmp_path: Path):
    run = SimulatedRun(seconds=0.2, saving_s=20)  # Ray Tune would kill their actors after ten seconds
    state = search(simulated_study(num_trials=3, max_concurrent=2), str(tmp_path), run=run)
    stopped = [trial.number for trial in state.records if trial.state == "stopped"]
    assert stopped
    assert all((tmp_path / "trials" / f"{number:04d}" / "saved").exists() for number in stopped)


@pytest.mark.parametrize(("is_killed", "reason"), [(False, "the loss is nan at step 4"), (True, "process")])
def test_a_trial_that_fails_is_retried_from_its_checkpoint_then_given_up_and_the_others_finish(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool, reason: str
):
    space = SearchSpace(parameters=(Float(path="sassl.prob", low=0.7, high=1.0),))
    study = simulated_study(searcher="grid", scheduler="fifo", num_trials=3, retries=1).model_copy(update={"space": space})
    waiting: list[int] = []
    suggest = RecordSearcher.suggest

    def suggest_and_count(self: RecordSearcher, trial_id: str) -> dict | str | None:
        suggested = suggest(self, trial_id)
        waiting.append(sum(trial.is_open and not trial.attempts for trial in self._state.records))
        return suggested

    monkeypatch.setattr(RecordSearcher, "suggest", suggest_and_count)
    state = search(study, str(tmp_path), run=SimulatedRun(failing=(4, 2), is_killed=is_killed))
    assert max(waiting) == 2  # the actors of trials that there is room for are started together
    assert [trial.point["sassl.prob"] for trial in state.records] == [0.7, 0.85, 1.0]  # which fail never, once and twice
    assert [(trial.state, trial.attempts) for trial in state.records] == [("finished", 1), ("finished", 2), ("failed", 2)]
    for number in (0, 1):
        assert _steps(tmp_path, number) == list(range(1, NUM_EVALUATIONS + 1))
    assert reason in (state.records[2].reason or "")


def test_a_study_is_given_up_when_its_first_trials_all_fail_at_once(ray_cluster: None, tmp_path: Path):
    high = SearchSpace(parameters=(Float(path="sassl.prob", low=0.91, high=1.0),))
    study = simulated_study(scheduler="fifo", num_trials=9, retries=0, max_concurrent=1).model_copy(update={"space": high})
    with pytest.raises(
        UsageError, match=r"the first 3 trials failed before their first evaluation.*the last one failed with: .*the loss is nan at step 1"
    ):
        search(study, str(tmp_path), run=SimulatedRun(failing=(1, 9)))
    assert [trial.state for trial in read_trials(str(tmp_path))] == ["failed"] * 3


def test_a_study_whose_first_trials_fail_waits_for_those_that_run_before_it_is_given_up(tmp_path: Path):
    study = simulated_study(scheduler="fifo", num_trials=9)
    state = StudyState(study, str(tmp_path), {}, concurrent=5)
    searcher = RecordSearcher(state, build_scheduler(study, NUM_EVALUATIONS))
    for number in range(4):
        assert isinstance(searcher.suggest(str(number)), dict)
    for number in range(3):
        state.trials[number].state, state.trials[number].reason = "failed", "no room"
        searcher.on_trial_complete(str(number), error=True)
    assert too_many_failures(state) == "no room"
    assert searcher.suggest("more") is None
    state.trials[3].curve.append(Evaluation(1, {"knn_top1": 0.5}, 1.0))
    assert too_many_failures(state) is None
    assert isinstance(searcher.suggest("more"), dict)
    state.trials[3].curve.clear()
    for trial_id in ("3", "more"):
        searcher.on_trial_complete(trial_id, error=True)
    assert searcher.suggest("more") == Searcher.FINISHED


def test_a_study_whose_time_is_up_goes_on_where_it_was(ray_cluster: None, tmp_path: Path):
    study = simulated_study(scheduler="fifo", num_trials=3, max_concurrent=1)
    stopped = search(study.model_copy(update={"time_budget_s": 1e-3}), str(tmp_path), run=SimulatedRun(seconds=0.5))
    assert {trial.state for trial in stopped.records} <= {"interrupted"}
    with pytest.raises(UsageError, match="already contains a study"):
        search(study, str(tmp_path), run=SimulatedRun())
    state = search(study, str(tmp_path), resume=True, run=SimulatedRun())
    assert [trial.state for trial in state.records] == ["finished"] * 3
    assert all(_steps(tmp_path, number) == list(range(1, NUM_EVALUATIONS + 1)) for number in range(3))


def test_population_based_training_moves_bad_trials_to_the_checkpoints_of_good_ones(ray_cluster: None, tmp_path: Path):
    study = simulated_study(scheduler="pbt", num_trials=4, seed=3)
    state = search(study, str(tmp_path / "study"), run=SimulatedRun(is_paced=True), watch=Pace(tmp_path / "study", 4))
    assert {trial.state for trial in state.records} == {"finished"}
    moved = [trial for trial in state.records if trial.moves]
    assert moved
    for trial in moved:
        assert trial.point == trial.moves[-1]["point"]
        assert 0 <= trial.point["sassl.prob"] <= 1  # type: ignore[operator]
        assert {move["donor"] for move in trial.moves} <= set(range(4)) - {trial.number}
        probs = [entry["prob"] for entry in _entries(tmp_path / "study", trial.number)]
        assert probs[-1] == trial.point["sassl.prob"]
        assert len(set(probs)) == len(trial.moves) + 1
    for trial in state.records:
        assert [evaluation.number for evaluation in trial.curve][-1] == NUM_EVALUATIONS
        # A donor's folder is its own: nobody else's steps are in it.
        assert trial.moves or _steps(tmp_path / "study", trial.number) == list(range(1, NUM_EVALUATIONS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_trials_are_whole_pretraining_runs_also_with_workers_of_their_own(ray_cluster: None, tmp_path: Path, num_workers: int):
    study = small_study(tmp_path, num_workers=num_workers, reduction_factor=2, scheduler="asha", num_trials=3, seed=2)
    study = study.model_copy(update={"base": apply_overrides(study.base, ["evaluate.test={path: nowhere/test}"])})  # no trial needs it
    state = search(study, str(tmp_path / "study"))
    assert state.records[0].state == "finished"
    assert "stopped" in {trial.state for trial in state.records}
    for trial in state.records:
        folder = tmp_path / "study" / "trials" / f"{trial.number:04d}"
        assert (folder / "views.png").exists()
        assert json.loads((folder / "summary.json").read_text())["status"] == ("finished" if trial.state == "finished" else "interrupted")
        assert trial.value("images_per_s")
        assert not any(name.startswith("test_") for evaluation in trial.curve for name in evaluation.metrics)


@pytest.mark.slow
def test_a_trial_with_workers_whose_launcher_is_killed_gives_their_cpus_back_to_the_next_attempt(ray_cluster: None, tmp_path: Path):
    study = small_study(tmp_path, num_workers=1)
    study = study.model_copy(update={"base": apply_overrides(study.base, ["scaling.cpus_per_worker=1"])})  # two attempts do not fit at once
    killed: list[int] = []

    def watch(state: StudyState) -> None:
        if not killed and state.records and state.records[0].curve and (launcher := _process_named("ray::ResourceTrainable")):
            killed.append(launcher)
            os.kill(launcher, signal.SIGKILL)

    state = search(study, str(tmp_path / "study"), watch=watch)
    (trial,) = state.records
    assert killed
    assert (trial.state, trial.attempts) == ("finished", 2)
    numbers = [evaluation.number for evaluation in trial.curve]
    assert (numbers[0], numbers[-1]) == (1, 4)  # of those between, the workers may have made some while nobody listened
    assert numbers == sorted(set(numbers))


def test_trials_on_nodes_without_a_stylizers_weights_get_them_from_the_driver(
    ray_cluster: None, weights_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache_of_the_nodes = weights_path(WEIGHTS)
    assert not cache_of_the_nodes.exists()
    study = simulated_study(scheduler="fifo", num_trials=2, searcher="grid", max_concurrent=1)
    space = SearchSpace(parameters=(Choice(path="stylize", choices=("swift", "magenta")),))
    study = study.model_copy(update={"space": space})
    with pytest.raises(MissingWeightsError, match="ray-sassl weights fetch magenta"):
        search(study, str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))  # of this process alone: Ray's were started before
    try:
        state = search(study, str(tmp_path / "study"), run=StylizingRun())
        assert [(trial.point["stylize"], trial.state) for trial in state.records] == [("swift", "finished"), ("magenta", "finished")]
        assert cache_of_the_nodes.read_bytes() == weights_path(WEIGHTS).read_bytes()
    finally:
        cache_of_the_nodes.unlink(missing_ok=True)


def _process_named(title: str) -> int | None:
    """A process that descends from this one."""
    for pid in tree(os.getpid()):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_text().startswith(title):
                return pid
    return None


@pytest.mark.slow
def test_no_finished_trial_is_lost_or_run_again_when_the_driver_is_killed(tmp_path: Path):
    stop()  # workers are not forked here: the driver is killed with all that it has started
    program = tmp_path / "driver.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).resolve().parents[3])!r})\n"
        "from tests.orchestrate.simulated import SimulatedRun, simulated_study\n"
        "from ray_sassl.orchestrate.tune.search import search\n"
        "if __name__ == '__main__':\n"
        "    search(simulated_study(scheduler='fifo', num_trials=4, max_concurrent=1), sys.argv[1], resume=len(sys.argv) > 2,\n"
        "           run=SimulatedRun(seconds=0.2))\n"
    )
    study_dir = tmp_path / "study"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, str(program), str(study_dir)], env=environment)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        trials = read_trials(str(study_dir)) if study_dir.exists() else []
        if any(t.state == "finished" for t in trials) and any(t.state == "running" and len(t.curve) >= 2 for t in trials):
            break
        time.sleep(0.1)
    kill_driver(driver)
    before = {trial.number: trial for trial in read_trials(str(study_dir))}
    finished = [number for number, trial in before.items() if trial.state == "finished"]
    running = [number for number, trial in before.items() if trial.state == "running"]
    assert finished
    assert running
    subprocess.run([sys.executable, str(program), str(study_dir), "resume"], env=environment, check=True, timeout=240)
    after = {trial.number: trial for trial in read_trials(str(study_dir))}
    assert [trial.state for trial in after.values()] == ["finished"] * 4
    for number in finished:
        assert after[number] == before[number]
        assert _steps(study_dir, number) == list(range(1, NUM_EVALUATIONS + 1))
    for number in running:
        steps = _steps(study_dir, number)
        assert steps[-1] == NUM_EVALUATIONS
        assert len(steps) <= NUM_EVALUATIONS + 1  # what came after the last checkpoint
        assert after[number].point == before[number].point
    undisturbed = [trial.point for trial in after.values()]
    assert undisturbed == [trial.point for trial in _points_of_an_undisturbed_study()]


def _points_of_an_undisturbed_study():
    from ray_sassl.study.record import TrialRecord
    from ray_sassl.study.searcher import suggest

    study = simulated_study(scheduler="fifo", num_trials=4)
    trials: list[TrialRecord] = []
    for number in range(4):
        point = suggest(study.space, study.base, [], number, seed=study.seed, searcher=study.searcher)
        assert point is not None
        trials.append(TrialRecord(number, point))
    return trials


def test_what_cannot_be_searched_is_refused_before_anything_is_written(tmp_path: Path):
    study = simulated_study()
    blind = study.model_copy(update={"base": apply_overrides(study.base, ["evaluate.train=null"])})
    with pytest.raises(UsageError, match=r"set evaluate\.train, as in"):
        search(blind, str(tmp_path / "study"))
    for validation in ("synthetic:test", "[synthetic:test]"):
        choosing = study.model_copy(update={"base": apply_overrides(study.base, [f"evaluate.validation={validation}"])})
        with pytest.raises(UsageError, match=r"evaluate\.validation and evaluate\.test are the same images"):
            search(choosing, str(tmp_path / "study"))
    with pytest.raises(UsageError, match=r"use knn_top1, which is measured on evaluate\.validation"):
        search(simulated_study(objectives=("test_knn_top1",)), str(tmp_path / "study"))
    wrong = study.model_copy(update={"space": SearchSpace(parameters=(Float(path="sassl.prob", low=0, high=2),))})
    with pytest.raises(UsageError, match="does not fit"):
        search(wrong, str(tmp_path / "study"))
    with pytest.raises(UsageError, match="scheduler pbt changes the trials that are running"):
        search(simulated_study(scheduler="pbt", searcher="grid"), str(tmp_path / "study"))
    with pytest.raises(UsageError, match="runs all 6 trials at once, not 2; lower --trials"):
        search(simulated_study(scheduler="pbt", max_concurrent=2), str(tmp_path / "study"))
    with pytest.raises(UsageError, match="--searcher optuna for several"):
        search(simulated_study(searcher="hyperband-bayes", objectives=("knn_top1", "images_per_s")), str(tmp_path / "study"))
    assert not (tmp_path / "study").exists()
