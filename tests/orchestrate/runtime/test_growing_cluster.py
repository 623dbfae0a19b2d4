"""A cluster that grows and shrinks by itself, from zero nodes: the right nodes come, never too many, all go, and no row is lost."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.train.checkpoint import latest_checkpoint
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards
from tests.orchestrate.growing_cluster import Group, GrowingCluster

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.chaos]

GROUPS = {
    "decode": Group(2, {"CPU": 1}),
    "stylize": Group(2, {"CPU": 1, "GPU": 1}),
    "train": Group(1, {"CPU": 1, "GPU": 1}),
}
_POOL = [
    "stylize=color_statistics", "stream.layout=pool", "stream.num_cpus=1", "stream.pool.num_gpus=1", "stream.pool.num_cpus=0.5",
    "stream.pool.min=1", "stream.pool.initial=2", "stream.pool.max=3", "stream.pool.node_group=stylize", "scaling.use_gpu=true",
    "scaling.cpus_per_worker=1", "scaling.node_group=train", "train.log_every=1", "train.checkpoint_every=20", "evaluate.train=null",
    "evaluate.test=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[GrowingCluster]:
    with tempfile.TemporaryDirectory(prefix="grow-") as folder:  # pytest's own folders are too deep for sockets
        cluster = GrowingCluster(Path(folder), GROUPS)
        try:
            cluster.wait_until_up()
            yield cluster
        finally:
            cluster.stop()


def _config(folder: Path, epochs: float) -> str:
    """The file of a run that stylizes in a pool of pretended GPUs, and trains on another."""
    config = apply_overrides(small_config(write_shards(folder), epochs=epochs), _POOL)
    path = folder / "pool.yaml"
    path.write_text(to_yaml(config))
    return str(path)


def _check_bounds(cluster: GrowingCluster) -> None:
    for look in cluster.looks():
        for name, group in GROUPS.items():
            assert look.count(name) <= group.most, (name, look)


def test_a_run_brings_up_what_it_needs_and_everything_goes_after_it(cluster: GrowingCluster, tmp_path: Path):
    run_dir = tmp_path / "run"
    epochs = 40
    began = time.time()
    driver = cluster.start_driver("run", "pretrain", _config(tmp_path, epochs), "--run-dir", str(run_dir))
    assert driver.wait(600) == 0, cluster.output("run")
    ended = time.time()
    said = cluster.output("run")
    assert "waiting: no room yet for 1 x 1 CPU, 1 GPU on the group train" in said
    assert "1 of train" in said, "the node that is on its way is named"
    cluster.wait_for(lambda look: look.workers == 0, 300)
    during = [look for look in cluster.looks() if began <= look.time <= ended]
    assert max(look.count("train") for look in during) == 1
    assert max(look.count("stylize") for look in during) == 2, (
        "both stylizers of the initial size, and no third node for the pool's maximum"
    )
    assert max(look.count("decode") for look in during) >= 1
    _check_bounds(cluster)
    one, two = (next(look.time for look in during if look.count("stylize") == count) for count in (1, 2))
    assert two - one < 30, "the second stylizer is asked for at once, and not after a minute of saturation"
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    assert checkpoint.step == epochs * NUM_ROWS // 16
    counts = [checkpoint.seen.count(epoch) for epoch in range(epochs + 1)]
    assert counts == [checkpoint.seen.num_rows] * epochs + [0], "so many steps, and every row of every epoch: none lost, none twice"


def test_a_run_that_no_group_has_room_for_says_what_it_waits_for_and_ends_with_the_sum(cluster: GrowingCluster, tmp_path: Path):
    words = ["scaling.num_workers=2", "stream.initial_tasks=2", "--run-dir", str(tmp_path / "run")]
    began = time.time()
    driver = cluster.start_driver("hopeless", "pretrain", _config(tmp_path, 1), *words)
    assert driver.wait(240) == 2, cluster.output("hopeless")
    said = cluster.output("hopeless")
    assert "waiting: no room yet for 2 x 1 CPU, 1 GPU on the group train for 2 training workers (scaling.num_workers)" in said
    assert "there is no room for" in said
    assert "In total it needs 3 GPUs, and the cluster has" in said
    assert "  2 for 2 training workers (scaling.num_workers)" in said
    came = {name: max(look.count(name) for look in cluster.looks() if look.time >= began) for name in ("decode", "stylize")}
    assert came == {"decode": 2, "stylize": 2}, "nodes of the stream are asked for before there are training workers"
    cluster.wait_for(lambda look: look.workers == 0, 120)
    _check_bounds(cluster)


def test_work_without_training_brings_up_a_node_too(cluster: GrowingCluster, tmp_path: Path):
    cluster.wait_until_quiet(20, 120)
    check = cluster.start_driver("check", "data", "check", write_shards(tmp_path))
    assert check.wait(240) == 0, cluster.output("check")
    assert "waiting: no room yet for 1 x 1 CPU for a task" in cluster.output("check")
    cluster.wait_for(lambda look: look.workers == 0, 120)
    _check_bounds(cluster)


def test_everything_goes_after_a_driver_that_was_killed_and_the_next_one_loses_no_row(cluster: GrowingCluster, tmp_path: Path):
    run_dir = tmp_path / "run"
    config = _config(tmp_path, epochs=200)
    driver = cluster.start_driver("killed", "pretrain", config, "--run-dir", str(run_dir))
    until = time.monotonic() + 500
    while latest_checkpoint(str(run_dir)) is None and time.monotonic() < until:
        assert driver.poll() is None, cluster.output("killed")
        time.sleep(0.5)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(30)
    cluster.wait_for(lambda look: look.workers == 0, 300)
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    epochs = checkpoint.step * 16 // NUM_ROWS + 2
    words = ("pretrain", config, f"train.epochs={epochs}", "--run-dir", str(run_dir), "--resume-if-begun")
    again = cluster.start_driver("again", *words)
    assert again.wait(600) == 0, cluster.output("again")
    checkpoint = latest_checkpoint(str(run_dir))
    assert checkpoint is not None
    assert checkpoint.step == epochs * NUM_ROWS // 16
    assert all(checkpoint.seen.count(epoch) == checkpoint.seen.num_rows for epoch in range(epochs))
    cluster.wait_for(lambda look: look.workers == 0, 300)
    _check_bounds(cluster)
