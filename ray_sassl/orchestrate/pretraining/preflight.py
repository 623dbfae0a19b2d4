"""Checks before a run starts: its images and those that it is evaluated on are there, and the batch, the method and the cluster allow its
workers. All but the cluster's are made before Ray is started, so an error in the arguments costs no time."""

from __future__ import annotations

import logging
from dataclasses import replace

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.data.mixing import mixing_of
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.data.reading import kept_index
from ray_sassl.data.sources import check_there
from ray_sassl.evaluation.apart import check_selection
from ray_sassl.evaluation.datasets import check_same_names, check_usable
from ray_sassl.orchestrate.pretraining.stream import layout_of
from ray_sassl.orchestrate.runtime.capacity import Need, ResourcesError, check_fits, missing_groups, offered
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL
from ray_sassl.process.errors import UsageError
from ray_sassl.train.config import check_shares, planned_progress

log = logging.getLogger(__name__)


def check_evaluation(config: ExperimentConfig) -> None:
    """Check that the images that the run is evaluated on exist, have labels that mean the same, and can be decoded, before it trains for an
    epoch, and are not those that it is tested on.

    Test images are only needed at the end of the run: if they do not exist yet, a warning says so.

    Raises:
        UsageError: they do not exist, cannot be used, have other classes, or are the test images.
    """
    evaluate = config.evaluate
    indexes: dict[str, Index] = {}
    for name, data in (("train", evaluate.train), ("validation", evaluate.own_validation)):
        try:
            if data is not None:
                check_there(data)
                indexes[name] = kept_index(data)
                check_usable(indexes[name])
                check_same_names(indexes["train"], indexes[name])
        except UsageError as error:
            raise UsageError(
                f"evaluate.{name}: {error}. The run is evaluated on these images as it trains; give your own labeled ones "
                f"(evaluate.{name}.path=...), or none: evaluate.train=null evaluate.test=null"
            ) from error
    check_selection(evaluate)
    if evaluate.train is not None and evaluate.test is not None and evaluate.final_test:
        try:
            check_there(evaluate.test)
        except (UsageError, OSError) as error:
            log.warning("evaluate.test: %s. The last line of the run has scores on these images only if they exist by then.", error)
        else:
            try:
                test = kept_index(evaluate.test)
                check_usable(test)
                check_same_names(indexes["train"], test)
            except UsageError as error:
                raise UsageError(
                    f"evaluate.test: {error}. The last line of the run has scores on these images; mend them, or leave them out: "
                    f"evaluate.test=null"
                ) from error


def check_workers(config: ExperimentConfig) -> None:
    """Check that the batch and the method allow every number of workers that the run may have.

    Raises:
        UsageError: they do not.
    """
    counts = config.scaling.worker_counts if config.scaling.num_workers else range(1, 2)
    check_shares(config.train, counts)
    config.method.check_workers(counts[0])


def check_data(config: ExperimentConfig, index: Index) -> str:
    """Check that the images make a full batch, and that not too many of them were found to be unusable when they were listed; returns how
    well batches will be mixed, in words, after a warning if that is poor.

    Raises:
        UsageError: they do not, or too many are unusable.
    """
    planned_progress(config.train, index.num_rows)
    Quarantine(index.num_rows, config.data.max_bad_fraction).add(index.problems)
    mixing = mixing_of(index, config.data, max(2, config.train.global_batch), config.seed)
    if not mixing.is_poor:
        return mixing.in_words()
    log.warning("%s", mixing.in_words())
    return ""


def uses_gpu(config: ExperimentConfig) -> bool:
    """Whether the training workers get a GPU each: as configured, else if the cluster has enough or may grow to have them."""
    if config.scaling.use_gpu is not None:
        return config.scaling.use_gpu
    return offered("GPU") >= config.scaling.worker_counts[0]


def worker_bundle(config: ExperimentConfig, use_gpu: bool) -> dict[str, float]:
    return {"CPU": config.scaling.cpus_per_worker} | ({"GPU": 1.0} if use_gpu else {})


def resource_needs(config: ExperimentConfig, use_gpu: bool) -> list[Need]:
    """What a run on Ray holds at once: the training workers, the smallest pool and one task of the stream."""
    scaling, stream = config.scaling, config.stream
    fewest, name = scaling.worker_counts[0], "min_workers" if scaling.is_elastic else "num_workers"
    needs = [
        Need(f"{fewest} training workers (scaling.{name})", fewest, worker_bundle(config, use_gpu), scaling.node_group),
        Need("one task of the stream (stream.num_cpus)", 1, {"CPU": stream.num_cpus}, stream.node_group),
    ]
    if layout_of(config) == "pool":
        pool = stream.pool
        each = {"CPU": pool.num_cpus, "GPU": pool.num_gpus}
        needs.append(Need(f"{pool.min} stylizers (stream.pool.min)", pool.min, each, pool.node_group))
    return needs


def stream_needs(config: ExperimentConfig) -> list[Need]:
    """What the stream begins with, besides the training workers."""
    stream, pool = config.stream, config.stream.pool
    _, *needs = resource_needs(config, use_gpu=False)
    return [replace(need, count=count) for need, count in zip(needs, (stream.initial_tasks, pool.initial or pool.min), strict=False)]


def check_resources(config: ExperimentConfig, use_gpu: bool) -> None:
    """Refuse a run that would wait forever. If nobody knows how far the cluster may grow, the run finds out while it waits.

    Raises:
        ResourcesError: the cluster cannot hold the run, even at its largest.
    """
    groups = [group for group in (config.scaling.node_group, config.stream.node_group, config.stream.pool.node_group) if group is not None]
    if missing := missing_groups(groups):
        raise ResourcesError(
            f"the cluster has no node of the group {', '.join(missing)}, that is, with the label {GROUP_LABEL}; if nodes have no groups, "
            "leave out scaling.node_group, stream.node_group and stream.pool.node_group"
        )
    check_fits(resource_needs(config, use_gpu), offered)
