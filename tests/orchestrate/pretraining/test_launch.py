"""Whole runs on Ray: exact, resumable, and honest about what went wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.evaluation import datasets
from ray_sassl.orchestrate.pretraining.control import ProgressUpdate
from ray_sassl.orchestrate.pretraining.launch import pretrain
from ray_sassl.orchestrate.pretraining.preflight import check_workers
from ray_sassl.orchestrate.pretraining.train_job import RunFailedError
from ray_sassl.orchestrate.runtime.capacity import ResourcesError
from ray_sassl.process.errors import UsageError
from ray_sassl.train.checkpoint import latest_checkpoint
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_held_shards, write_shards

pytestmark = pytest.mark.ray


def _state(run_dir: Path) -> dict:
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    return {**checkpoint.backbone, **checkpoint.state["method"]}


def test_a_run_on_ray_ends_with_the_same_weights_as_in_one_process(ray_cluster: None, tmp_path: Path):
    path = write_shards(tmp_path, bad=(3,))
    on_ray = pretrain(small_config(path), str(tmp_path / "ray"))
    here = pretrain(small_config(path, num_workers=0), str(tmp_path / "here"))
    assert on_ray.status == here.status == "finished"
    assert on_ray.step == here.step == (2 * (NUM_ROWS - 1)) // 16
    mine, theirs = _state(tmp_path / "ray"), _state(tmp_path / "here")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(mine[name], tensor), name


def test_a_run_directory_holds_the_record(ray_cluster: None, tmp_path: Path):
    run_dir = tmp_path / "run"
    reports: list[dict[str, float]] = []

    def watch(update: ProgressUpdate) -> None:
        reports.extend(update.reports)

    result = pretrain(small_config(write_shards(tmp_path, bad=(3, 70)), epochs=1), str(run_dir), watch=watch)
    assert {"config.yaml", "environment.json", "index.arrow", "metrics.jsonl", "quarantine.jsonl", "views.png", "summary.json"} <= {
        entry.name for entry in run_dir.iterdir()
    }
    assert json.loads((run_dir / "summary.json").read_text())["status"] == result.status == "finished"
    logged = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert logged == reports
    assert {"loss", "chance_loss", "embedding_std", "effective_rank", "learning_rate", "momentum", "images_per_s", "data_wait"} <= logged[
        0
    ].keys()
    assert sorted(json.loads(line)["sample_id"] for line in (run_dir / "quarantine.jsonl").read_text().splitlines()) == [3, 70]


def test_a_run_goes_on_with_two_workers_and_sees_every_sample_once(ray_cluster: None, tmp_path: Path):
    path, run_dir = write_shards(tmp_path), str(tmp_path / "run")
    pretrain(small_config(path, epochs=0.7), run_dir)
    result = pretrain(small_config(path, epochs=2, num_workers=2), run_dir, resume=True)
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert result.step == checkpoint.step == 2 * NUM_ROWS // 16
    assert [checkpoint.seen.count(epoch) for epoch in range(3)] == [NUM_ROWS, NUM_ROWS, 0]


def test_a_checkpoint_with_damaged_weights_is_passed_over_by_the_stream_and_all_workers(ray_cluster: None, tmp_path: Path):
    path, run_dir = write_shards(tmp_path), tmp_path / "run"
    overrides = ["train.checkpoint_every=4", "scaling.max_failures=0", "evaluate.train=null", "evaluate.test=null"]
    pretrain(apply_overrides(small_config(path, epochs=0.7), overrides), str(run_dir))
    _damage(run_dir / "checkpoints" / "step-00000007")
    notes: list[str] = []
    longer = apply_overrides(small_config(path, epochs=2, num_workers=2), [*overrides, "train.keep_checkpoints=1"])
    result = pretrain(longer, str(run_dir), resume=True, watch=lambda update: notes.extend(update.notes))
    assert ["step-00000007: model.safetensors is not the file that was written" in note for note in notes] == [True]
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    assert result.step == checkpoint.step == 2 * NUM_ROWS // 16
    assert [checkpoint.seen.count(epoch) for epoch in range(3)] == [NUM_ROWS, NUM_ROWS, 0]
    for folder in (run_dir / "checkpoints").iterdir():
        _damage(folder)
    with pytest.raises(RunFailedError, match=r"every checkpoint of .* is damaged"):
        pretrain(apply_overrides(longer, ["train.epochs=3"]), str(run_dir), resume=True)


def _damage(checkpoint: Path) -> None:
    """Flip a byte of the weights."""
    content = bytearray((checkpoint / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(content)


def test_too_many_bad_images_stop_the_run_and_are_named(ray_cluster: None, tmp_path: Path):
    path = write_shards(tmp_path, bad=tuple(range(20)))
    with pytest.raises(RunFailedError, match=r"data.max_bad_fraction allows 5.00%[\s\S]*train-0.parquet row"):
        pretrain(small_config(path), str(tmp_path / "run"))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "train-0.parquet" in summary["reason"]


def test_what_the_cluster_can_never_offer_is_refused_at_once(ray_cluster: None, tmp_path: Path):
    config = apply_overrides(small_config(write_shards(tmp_path)), ["scaling.num_workers=8", "scaling.cpus_per_worker=1"])
    with pytest.raises(ResourcesError, match="needs 9 CPUs and the cluster can offer 2; 7 are missing"):
        pretrain(config, str(tmp_path / "run"))
    with pytest.raises(ResourcesError, match="GPU"):
        pretrain(apply_overrides(config, ["scaling.num_workers=1", "scaling.use_gpu=true"]), str(tmp_path / "other"))


def test_a_run_that_could_not_be_scored_at_its_first_evaluation_is_refused_before_it_trains(tmp_path: Path):
    config = small_config(write_shards(tmp_path))
    for name in ("train", "validation"):
        with pytest.raises(UsageError, match=rf"evaluate\.{name}: .*nowhere/{name} does not exist.*evaluate\.train=null"):
            pretrain(apply_overrides(config, [f"evaluate.{name}={{path: nowhere/{name}}}"]), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_test_images_are_read_when_the_run_is_complete_and_give_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, run_dir = write_shards(tmp_path), tmp_path / "run"
    config = apply_overrides(
        small_config(path, num_workers=0), [f"evaluate.test={{path: {tmp_path}/held, max_bad_fraction: 1}}", "evaluate.online=both"]
    )
    real, found = datasets.kept_index, []

    def kept_index(data: DataConfig) -> Index:
        if data.path == f"{tmp_path}/held":  # which is there from the moment at which it may be read
            steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
            found.append((max(steps), (run_dir / "checkpoints" / f"step-{max(steps):08d}").exists()))
            write_held_shards(tmp_path)
        return real(data)

    monkeypatch.setattr(datasets, "kept_index", kept_index)
    result = pretrain(config, str(run_dir))
    assert found == [(result.step, True)]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1].keys() >= {"test_knn_top1", "test_linear_top1"}
    assert not any("test_knn_top1" in line for line in lines[:-1])
    assert [line["step"] for line in lines if "knn_top1" in line] == [10, 20]
    assert {"knn_top1", "test_knn_top1"} <= result.metrics.keys()


def test_a_run_in_one_process_computes_with_the_threads_that_it_is_given(tmp_path: Path):
    config = apply_overrides(small_config(write_shards(tmp_path), num_workers=0, epochs=1), ["scaling.threads_per_worker=3"])
    before = torch.get_num_threads()
    try:
        pretrain(config, str(tmp_path / "run"))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_run_is_refused_that_is_scored_on_its_test_images(tmp_path: Path):
    path = write_shards(tmp_path)
    test = f"evaluate.test={{path: '{write_held_shards(tmp_path)}'}}"
    for same, message in (
        (f"evaluate.validation={tmp_path}/held", "evaluate.validation and evaluate.test are the same images"),
        (f"evaluate.test={{path: {tmp_path}/train-1.parquet}}", "the train and the test images are the same"),
    ):
        with pytest.raises(UsageError, match=message):
            pretrain(apply_overrides(small_config(path), [test, same]), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_method_that_needs_several_workers_is_refused_where_one_may_be_left(tmp_path: Path):
    moco = ["method=moco", "method.bn=shuffle", "method.queue_size=64"]
    base = apply_overrides(small_config(write_shards(tmp_path)), moco)
    for scaling in ("{num_workers: 1}", "{num_workers: 0}", "{num_workers: 2, min_workers: 1}"):
        with pytest.raises(UsageError, match=r"method\.bn=split"):
            pretrain(apply_overrides(base, [f"scaling={scaling}"]), str(tmp_path / "run"))
    check_workers(apply_overrides(base, ["scaling={num_workers: 2}"]))
