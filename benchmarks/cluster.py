"""A cluster: how soon a run starts on it, what moves between its stages, and whether it is as fast as `cluster plan` says.

    python -m benchmarks.cluster [--only start bytes plan]

- start: from `ray-sassl pretrain --address` and from `ray-sassl job submit` to the first training step, on a cluster that is up.
- bytes: what Ray moves between the stages for an image, against the views that must move; goal at most 1.05 times as much.
- plan: images a second of the real stream with stages that sleep, on 1, 2 and 4 pretended training nodes with the other groups as planned,
  against the plan; goal within 10 %.
All nodes are processes of this machine; the cluster of `plan` grows from zero nodes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, write_results
from benchmarks.nodes import ROOT
from benchmarks.sleeping import NUM_ROWS, write_rows
from benchmarks.start import has_a_step
from ray_sassl.cluster.plan import Counts, Measured, NodeKind, Prices, Workload, plan, predict

MEASURED = Measured(decode_images_per_core_s=50, stylize_images_per_gpu_s=125, train_images_per_gpu_s=80, train_step_cv=0.0, startup_s=0.0)
"""Of the order of what one core and one small GPU do at 224 px; sleeps of these lengths stand for them. At four times these rates the
processes of ten nodes keep two cores so busy that they, and not the sleeps, decide the speed."""
MACHINES = Prices(
    decode=NodeKind(cpus=4, network_gbit_s=1000),
    stylize=NodeKind(cpus=1, gpus=1, network_gbit_s=1000),
    train=NodeKind(cpus=1, gpus=1, network_gbit_s=1000),
)
"""One machine's memory is their network."""
GLOBAL_BATCH = 256
TRAINERS = (1, 2, 4)
_FOUND = "images_per_s.txt"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=("start", "bytes", "plan"), default=["start", "bytes", "plan"])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    goals: list[Goal] = []
    details: dict[str, Any] = {}
    if "start" in args.only:
        details["first_step_s"] = first_steps()
    if "bytes" in args.only:
        details["bytes_per_image"] = found = bytes_per_image()
        goals += [
            Goal(f"bytes moved from {name} over those that must", figures["ratio"], "at most", 1.05) for name, figures in found.items()
        ]
    if "plan" in args.only:
        details["plan"] = found = {trainers: planned_and_measured(trainers) for trainers in TRAINERS}
        goals += [
            Goal(f"images/s on {trainers} training nodes: share by which the plan is off", abs(one["off"]), "at most", 0.1)
            for trainers, one in found.items()
        ]
    Console().print_json(json.dumps(details))
    table = Table("what", "measured", "goal", title="A cluster")
    for goal in goals:
        table.add_row(goal.what, f"{goal.measured:.3f}", f"{goal.bound} {goal.goal:g}")
    Console().print(table)
    print(f"written to {write_results('cluster', goals, details, args.out)}")


def first_steps() -> dict[str, float]:
    """Seconds from the command to the first step on a cluster that is up, of both ways to start a run."""
    from tests.orchestrate.job_cluster import TOKEN, environment, job_cluster

    overrides = [
        "scaling.cpus_per_worker=0.5", "stream.num_cpus=0.5", "stylize=identity", "train.log_every=1", "train.epochs=0.2",
    ]  # fmt: skip
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, job_cluster() as cluster:
        settings = {"PYTHONPATH": str(ROOT), "RAY_API_SERVER_ADDRESS": cluster.address, "RAY_AUTH_TOKEN": TOKEN}
        words = ["pretrain", "demo", *overrides, "--run-dir"]
        ways = {
            "pretrain --address": [*words, f"{folder}/direct", "--address", cluster.gcs_address],
            "job submit": ["job", "submit", "--env", f"RAY_ADDRESS={cluster.gcs_address}", "--wait", "--", *words, f"{folder}/job"],
        }
        for name, command in ways.items():
            metrics = Path(folder, "direct" if name.startswith("pretrain") else "job", "metrics.jsonl")
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", "ray_sassl.cli", *command], env=environment() | settings, cwd=folder, stdout=subprocess.DEVNULL
            )
            while not has_a_step(metrics):
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended with exit code {process.returncode} before its first step")
                time.sleep(0.05)
            found[name] = time.perf_counter() - began
            process.wait()
    return found


def bytes_per_image() -> dict[str, dict[str, float]]:
    """What each stage hands on for an image in Ray's object store, and what it must: the views as they are, and which image it is."""
    import ray
    from ray.data import DataContext

    from benchmarks.sleeping import BytesOfStages, SleepingReads, sleeping_config, sleeping_style_actor
    from ray_sassl.config.overrides import apply_overrides
    from ray_sassl.data.seen import SeenIds
    from ray_sassl.orchestrate.pretraining.control import start_control
    from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
    from ray_sassl.orchestrate.runtime.session import ray_session
    from ray_sassl.runs.directory import prepare_run_dir
    from ray_sassl.runs.process import view_source

    with tempfile.TemporaryDirectory() as folder, ray_session("local", num_cpus=2):
        config = sleeping_config(write_rows(Path(folder)), Counts(1, 1, 1, 1), GLOBAL_BATCH)
        local = [
            "stream.pool.num_gpus=0",
            "stream.pool.num_cpus=0.5",
            "stream.pool.node_group=null",
            "train.epochs=1",
            "stream.num_cpus=0.5",
        ]
        config = apply_overrides(config, local)
        run_dir = f"{folder}/run"
        index = prepare_run_dir(config, run_dir, resume=False)
        control = start_control(index.num_rows, 0.0, f"{folder}/quarantine.jsonl")
        DataContext.get_current().custom_execution_callback_classes.append(BytesOfStages)
        stream = make_stream(
            stream_spec(config, view_source(config, run_dir)),
            SeenIds(index.num_rows),
            control,
            read_stage=SleepingReads(1e9),
            style_actor=sleeping_style_actor(1e9),
        )
        rows = sum(len(batch["sample_id"]) for batch in stream.iter_batches(batch_size=GLOBAL_BATCH, batch_format="numpy"))
        assert rows == NUM_ROWS
        ray.shutdown()
    must = sum(size_px**2 for size_px in config.views.sizes_px) * 3
    moved = BytesOfStages.moved
    return {name: {"moved": moved[name] / rows, "must": must, "ratio": moved[name] / rows / must} for name in moved}


def planned_and_measured(trainers: int, *, seconds: float = 30.0) -> dict[str, Any]:
    """The plan's images a second for so many training nodes, what its cluster does with stages that sleep, and by which share it is off."""
    workload = Workload(
        num_images=NUM_ROWS,
        epochs=1000,
        global_batch=GLOBAL_BATCH,
        accumulate=1,
        has_pool=True,
        view_bytes=2 * 32**2 * 3,
        task_cpus=1,
        worker_cpus=1,
        actor_cpus=1,
        actor_gpus=1,
        gradient_bytes=0,
    )
    planned = plan(workload, MEASURED, MACHINES, trainers=trainers)
    assert predict(workload, MEASURED, MACHINES, planned.counts) == planned
    measured = measured_on(planned.counts, steps=max(4, round(seconds * planned.images_per_s / GLOBAL_BATCH)))
    return {
        "nodes": {"decode": planned.counts.decode, "stylize": planned.counts.stylize, "train": planned.counts.train},
        "planned": planned.images_per_s,
        "measured": measured,
        "off": planned.images_per_s / measured - 1,
    }


def measured_on(counts: Counts, *, steps: int) -> float:
    """Images a second on a cluster that may grow to these counts, with stages that sleep."""
    from tests.orchestrate.growing_cluster import Group, GrowingCluster

    groups = {
        name: Group(getattr(counts, name), {"CPU": float(kind.cpus)} | ({"GPU": float(kind.gpus)} if kind.gpus else {}))
        for name, kind in (("decode", MACHINES.decode), ("stylize", MACHINES.stylize), ("train", MACHINES.train))
    }
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        cluster = GrowingCluster(Path(folder) / "head", groups, idle_s=60)
        try:
            cluster.wait_until_up()
            order = {"folder": folder, "address": cluster.address, "counts": counts.__dict__, "steps": steps}
            subprocess.run(
                [sys.executable, "-c", "from benchmarks.cluster import drive; drive()"],
                input=json.dumps(order),
                env=cluster.environment,
                text=True,
                check=True,
                timeout=400,
            )
        finally:
            cluster.stop()
        return float((Path(folder) / _FOUND).read_text())


def drive() -> None:
    """In a process of its own: run on the cluster that standard input names, and write down images a second."""
    from benchmarks.sleeping import images_per_s, sleeping_config
    from ray_sassl.orchestrate.runtime.session import ray_session

    order = json.load(sys.stdin)
    counts = Counts(**order["counts"])
    folder = Path(order["folder"])
    config = sleeping_config(write_rows(folder), counts, GLOBAL_BATCH)
    with ray_session(order["address"]):
        cpus = sum(getattr(counts, name) * getattr(MACHINES, name).cpus for name in ("decode", "stylize", "train"))
        found = images_per_s(config, MEASURED, folder, cpus=cpus, steps=order["steps"])
    (folder / _FOUND).write_text(f"{found}")


if __name__ == "__main__":
    main()
