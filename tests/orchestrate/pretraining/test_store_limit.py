"""Small stores of decoding nodes do not overflow beside a trainer's large one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.data import DataContext

from benchmarks.nodes import Nodes, running_nodes
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.store_limit import Stage, share_of, store_limit
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.orchestrate.runtime.private import ExecutionCallback
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.orchestrate.conftest import small_config, write_shards

MB = 1_000_000


def _node(cpus: float, store_mb: float, *, gpus: float = 0, group: str = "", alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "object_store_memory": store_mb * MB}
    return {"Alive": alive, "Labels": {"ray-sassl/group": group} if group else {}, "Resources": {k: v for k, v in resources.items() if v}}


def test_the_limit_is_what_the_decoding_nodes_hold():
    nodes = [_node(2, 100), _node(2, 100), _node(1, 1600, gpus=1), _node(0, 5000)]
    assert store_limit(nodes, [Stage(None, per_gpu=1)]) == 0.4 * 200 * MB, "the trainers' CPUs and their store do not count"
    assert store_limit(nodes, [Stage(None)]) == 0.4 * 250 * MB
    assert store_limit(nodes[3:], [Stage(None)]) is None, "no node decodes"
    assert store_limit([*nodes, _node(64, 10, alive=False)], [Stage(None)]) == 0.4 * 250 * MB


def test_a_group_and_the_stylizers_limit_it_too():
    nodes = [_node(8, 800, group="decode"), _node(4, 100, gpus=1, group="stylize"), _node(1, 9000, gpus=8, group="train")]
    assert store_limit(nodes, [Stage("decode")]) == 0.4 * 800 * MB
    assert store_limit(nodes, [Stage("decode"), Stage("stylize", "GPU")]) == 0.4 * 100 * MB
    assert store_limit(nodes, [Stage("decode"), Stage("elsewhere")]) == 0.4 * 800 * MB


def test_streams_share_the_nodes_of_their_stages_without_the_trainers_cpus():
    nodes = [_node(8, 800, group="decode"), _node(4, 100, gpus=1, group="stylize"), _node(10, 9000, gpus=8, group="train")]
    share = share_of(nodes, [Stage("decode"), Stage("stylize", "GPU")], 64)
    assert (share.cpu, share.gpu, share.object_store_memory) == (1, 1, 900 * MB / 64), "no stream is left without a core"
    assert share_of(nodes, [Stage(None, per_gpu=1)], 2).cpu == (8 + 3 + 2 + 1) / 2
    assert share_of([], [Stage(None)], 2).cpu == 0


def test_gpus_without_a_training_worker_take_no_cpus_of_the_streams():
    nodes = [_node(64, 800, gpus=8)]
    two_of_eight = Stage(None, per_gpu=8, most_taken=16)
    assert share_of(nodes, [two_of_eight], 2).cpu == (64 - 16) / 2
    assert share_of(nodes, [two_of_eight, Stage(None, "GPU")], 2).cpu == (64 - 16) / 2
    assert share_of([*nodes, _node(4, 100)], [Stage(None, per_gpu=8, most_taken=64)], 2).cpu == 4 / 2
    assert share_of(nodes, [], 1).cpu == 0


class _Limits(ExecutionCallback):
    """Keeps what the executions are limited to."""

    seen: list[float] = []  # noqa: RUF012 - shared on purpose

    def on_execution_step(self, executor: Any) -> None:
        self.seen.append(executor._options.resource_limits.object_store_memory)


@pytest.mark.ray
def test_a_stream_runs_within_the_limit(ray_cluster: None, tmp_path: Path):
    import ray

    config = apply_overrides(small_config(write_shards(tmp_path)), ["stream.num_cpus=0.5"])
    run_dir = str(tmp_path / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    control = start_control(index.num_rows, 0.05, str(tmp_path / "quarantine.jsonl"))
    DataContext.get_current().custom_execution_callback_classes.append(_Limits)
    stream = make_stream(stream_spec(config, view_source(config, run_dir)), SeenIds(index.num_rows), control)
    next(iter(stream.iter_batches(batch_size=16)))
    limit = store_limit(ray.nodes(), [Stage(None, per_gpu=0.5)])
    assert limit is not None
    assert set(_Limits.seen) == {round(limit)}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with running_nodes(0) as nodes:
        yield nodes


@pytest.mark.ray
@pytest.mark.chaos
def test_small_stores_do_not_overflow_while_a_large_one_is_empty(nodes: Nodes, tmp_path: Path):
    for number, (cpus, store_mb) in enumerate([(2, 100), (2, 100), (1, 1600)]):
        nodes.add(cpus, store_mb * MB, group="decode" if store_mb == 100 else "train")
        nodes.wait_for(2 + number)
    path = write_shards(tmp_path)
    script = Path(__file__).with_name("slow_consumer.py")
    subprocess.run([sys.executable, str(script), path, str(tmp_path), nodes.address], env=nodes.environment, check=True, timeout=240)
    logs = [log.read_text(errors="replace") for log in nodes.folder.glob("session_*/logs/raylet*.out")]
    assert logs
    assert not [line for log in logs for line in log.splitlines() if "Spilled" in line]
