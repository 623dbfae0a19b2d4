"""Clusters from Python: check their definitions, and plan their size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_sassl.cluster.counts import write_counts
from ray_sassl.cluster.curve import curve_picture
from ray_sassl.cluster.plan import Prediction, Prices, Target, curve, num_stylizers, plan, read_measured, read_prices, workload_of
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.files.own import write_picture
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, load_config

if TYPE_CHECKING:
    from ray_sassl.cluster.findings import Finding


def check_cluster(files: Sequence[str], crds: str | None = None, kuberay: str | None = None) -> dict[str, list[Finding]]:
    """The problems of cluster definitions, by file, including notes.

    Args:
        files: Files for `ray up`, or Kubernetes manifests.
        crds: Folder of CRDs, KubeRay's and those of other operators; with it every field of their kinds is checked.
        kuberay: The version of the KubeRay operator; fields that it does not know yet are problems.

    Raises:
        UsageError: a file cannot be read; `kuberay` is not a version.
    """
    from ray_sassl.orchestrate.runtime.definitions import check_files

    return check_files(list(files), crds, kuberay)


@dataclass(frozen=True)
class ClusterPlan:
    """How many nodes keep the trainers busy.

    Attributes:
        prediction: Nodes, rates, time and cost.
        prices: The machines of each group.
        has_pool: Whether a pool of actors stylizes, instead of the tasks that decode.
        settings: Overrides for the run, `path=value`.
        groups: Overrides that keep workers and stylizers on the nodes meant for them.
        curve: Path of the figure of throughput over cost.
        written: Definitions into which the numbers of nodes were written.
    """

    prediction: Prediction
    prices: Prices
    has_pool: bool
    settings: tuple[str, ...]
    groups: tuple[str, ...]
    curve: str
    written: tuple[str, ...]


def plan_cluster(
    experiment: ExperimentConfig | str | os.PathLike[str],
    measured: Sequence[str],
    *,
    overrides: Overrides = None,
    num_images: int | None = None,
    prices: str | None = None,
    target: Target | None = None,
    headroom: float = 0.15,
    out: str = "cluster-plan.png",
    write: Sequence[str] = (),
) -> ClusterPlan:
    """How many nodes of each group keep the trainers busy, how fast that is, and what it costs.

    Args:
        experiment: A config, an experiment's name, a YAML file, or a run directory.
        measured: JSON files with `decode_images_per_core_s`, `train_images_per_gpu_s` and `stylize_images_per_gpu_s`.
        overrides: Changes to the config.
        num_images: Images of the data set, if the measurements do not contain it.
        prices: YAML file with the machines of each group and their prices.
        target: A rate, a deadline or a budget; by default `scaling.num_workers` GPUs.
        headroom: Spare capacity of the stages before the trainers, as a share.
        out: Path or URI for the curve of throughput over cost (PNG).
        write: Launcher or KubeRay files to write the numbers of nodes into.

    Raises:
        UsageError: nothing was measured, a file is wrong, or no cluster reaches the target.
    """
    from ray_sassl.orchestrate.pretraining.stream import layout_of
    from ray_sassl.orchestrate.runtime.definitions import read_definition
    from ray_sassl.runs.process import build_method

    if not measured:
        raise UsageError("a plan needs measurements; give their file with --measured")
    config = load_config(experiment, overrides)
    num_parameters = sum(parameter.numel() for parameter in build_method(config).parameters() if parameter.requires_grad)
    found = read_measured({path: read_definition(path) for path in measured}, num_images=num_images, num_parameters=num_parameters)
    kinds = read_prices(read_definition(prices), prices) if prices is not None else Prices()
    workload = workload_of(config, found, has_pool=layout_of(config) == "pool")
    chosen = plan(workload, found, kinds, target or Target(), trainers=max(1, config.scaling.num_workers), headroom=headroom)
    write_picture(out, curve_picture(list(curve(workload, found, kinds, headroom=headroom)), chosen, config.name))
    counts = {"decode": chosen.counts.decode, "stylize": chosen.counts.stylize, "train": chosen.counts.train}
    written = {path: write_counts(read_definition(path), path, counts) for path in write}
    for path, text in written.items():
        storage.write_text(path, text)
    settings = [f"scaling.num_workers={chosen.counts.trainers}", "scaling.use_gpu=true"]
    groups = ["scaling.node_group=train"]
    if workload.has_pool:
        size = num_stylizers(workload, kinds, chosen.counts)
        settings += [f"stream.pool.{name}={size}" for name in ("min", "initial", "max")]
        settings.append(f"stream.pool.num_gpus={workload.actor_gpus:g}")
        groups.append("stream.pool.node_group=stylize")
    return ClusterPlan(chosen, kinds, workload.has_pool, tuple(settings), tuple(groups), out, tuple(written))
