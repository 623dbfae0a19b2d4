"""The same global batch on one worker and on two is the same run."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from ray_sassl.config.files import to_yaml
from ray_sassl.data.reading import cached_index
from ray_sassl.evaluation.subject import untrained_backbone
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints
from tests.together import run_together

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("two_workers.py")
CALM = "optim.base_lr=0.0005"  # at higher rates, the last bit of a float32 can grow to a visible difference within six steps
CALMEST = "optim.base_lr=0.00001"
CALMER = "optim.base_lr=0.00005"  # for a loss that is ten times as large, of embeddings that are standardized
RUNS = {
    "simclr": ("simclr", CALM),
    "moco": ("moco", CALM),
    "byol": ("byol", CALM),
    "barlow_twins": ("barlow_twins", CALMEST),
    "vicreg": ("vicreg", CALMER),
    "swav": ("swav", CALM),
    "dino": ("dino", CALM),
    "accumulated": ("byol", CALM, "train.accumulate=2"),
    "scored": ("simclr", CALM, "train.epochs=1.2", "train.evaluate_every=2", "evaluate.size_px=16"),
    "stopped": ("simclr", CALM, "train.epochs=1.9"),
    "seldom": ("simclr", CALM, "train.checkpoint_every=2", "train.checkpoint_min_s=3600", "train.keep_checkpoints=9"),
    "unwritable": ("simclr", CALM, "train.checkpoint_every=2"),
    "diverging": ("simclr", "optim.base_lr=1e30", "optim.warmup_epochs=0", "method.projector_last_bn=false"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config) -> Path:
    """Where two processes have left what they saw of the runs."""
    folder = tmp_path_factory.mktemp("two_workers")
    for name, (method, *overrides) in RUNS.items():
        labeled = tiny_config().data.path
        config = tiny_config(method, *overrides, *([f"evaluate.train={{path: {labeled}}}"] if name == "scored" else []))
        (folder / f"{name}.yaml").write_text(to_yaml(config))
        (folder / f"{name}-run").mkdir()
        cached_index(config.data, folder / f"{name}-run" / "index.arrow")
    in_the_way = folder / "unwritable-run" / "checkpoints" / "step-00000004"
    in_the_way.parent.mkdir()
    in_the_way.touch()
    commands = [[sys.executable, str(SCRIPT), str(folder), str(rank)] for rank in range(2)]
    run_together(commands, 300)
    return folder


def _result(folder: Path, name: str, rank: int) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "barlow_twins", "vicreg", "swav", "dino", "accumulated"])
def test_two_workers_have_the_loss_curve_of_one(folder, tiny_config, run_here, tmp_path, name):
    method, *overrides = RUNS[name]
    alone = run_here(tiny_config(method, *overrides), tmp_path)
    together = _result(folder, name, 0)
    assert together["status"] == "finished"
    assert len(alone.losses) == 6
    assert [report["loss"] for report in together["metrics"]] == pytest.approx(
        alone.losses, rel=1e-4, abs=1e-4
    )  # of losses above 1, a share
    assert len(set(alone.losses)) == 6
    one, two = latest_checkpoint(str(tmp_path)), latest_checkpoint(str(folder / f"{name}-run"))
    assert one is not None
    assert two is not None
    start = dict(untrained_backbone(tiny_config(method)).named_parameters())
    apart = torch.cat([(two.backbone[key] - one.backbone[key]).flatten() for key in start])
    moved = torch.cat([(one.backbone[key] - value.detach()).flatten() for key, value in start.items()])
    assert apart.norm() < 0.03 * moved.norm()  # a worker whose half were not counted would make it tens of percent


@pytest.mark.parametrize("name", ["simclr", "accumulated"])
def test_the_checkpoint_holds_what_all_workers_have_seen(folder, tiny_config, run_here, tmp_path, name):
    method, *overrides = RUNS[name]
    alone = run_here(tiny_config(method, *overrides), tmp_path)
    taken = [set(map(tuple, _result(folder, name, rank)["taken"])) for rank in range(2)]
    assert not taken[0] & taken[1]
    assert taken[0] | taken[1] == set(alone.taken)
    checkpoint = latest_checkpoint(str(folder / f"{name}-run"))
    assert checkpoint is not None
    seen = checkpoint.seen
    assert [seen.count(epoch) for epoch in range(3)] == [44, 44, 8]


def test_both_workers_score_and_go_on(folder):
    assert [_result(folder, "scored", rank)["status"] for rank in range(2)] == ["finished", "finished"]
    scored = [report for report in _result(folder, "scored", 0)["metrics"] if "evaluation" in report]
    assert [report["evaluation"] for report in scored] == [1, 2]
    assert all(0 <= report["knn_top1"] <= 1 for report in scored)
    assert not any("failed_evaluations" in report for report in scored)


def test_a_stop_that_one_worker_is_asked_for_stops_all_at_the_same_step(folder):
    assert [_result(folder, "stopped", rank)["status"] for rank in range(2)] == ["interrupted", "interrupted"]
    assert [_result(folder, "stopped", rank)["step"] for rank in range(2)] == [4, 4]  # asked at step 3, known at the next


def test_one_worker_resumes_a_run_of_two(folder, tiny_config, run_here, tmp_path):
    method, *overrides = RUNS["stopped"]
    config = tiny_config(method, *overrides)
    left = [tuple(key) for rank in range(2) for key in _result(folder, "stopped", rank)["taken"]]
    resumed = run_here(config, folder / "stopped-run")
    assert (resumed.outcome.status, resumed.outcome.step) == ("finished", 5)
    whole = run_here(config, tmp_path)
    assert resumed.taken == whole.taken[len(left) :]
    assert resumed.losses[-1] == pytest.approx(whole.losses[-1], abs=1e-4)


def test_a_diverging_run_ends_on_all_workers(folder):
    for rank in range(2):
        assert _result(folder, "diverging", rank)["error"].startswith("DivergedError"), rank


def test_a_checkpoint_that_the_first_worker_cannot_write_ends_all_workers_with_its_error(folder):
    errors = [_result(folder, "unwritable", rank)["error"] for rank in range(2)]
    assert errors[0] == errors[1]
    assert errors[0].startswith("CheckpointNotWrittenError: the checkpoint of step 4 could not be written")
    assert "The last whole one is" in errors[0]


def test_the_first_worker_decides_whether_enough_time_has_passed_for_a_checkpoint(folder):
    assert [_result(folder, "seldom", rank)["status"] for rank in range(2)] == ["finished", "finished"]
    assert [step for step, _ in list_checkpoints(str(folder / "seldom-run"))] == [2, 6]


def test_one_worker_reads_the_checkpoint_for_all(folder):
    first, second = (_result(folder, "start", rank) for rank in range(2))
    assert first == second
    assert first["error"].startswith("BadCheckpointError: ")
    assert "model.safetensors is not the file that was written" in first["error"]


def test_only_the_first_worker_reports(folder):
    assert all(math.isfinite(report["loss"]) for report in _result(folder, "simclr", 0)["metrics"])
    assert _result(folder, "simclr", 1)["metrics"] == []
