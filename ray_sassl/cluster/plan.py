"""How many nodes of each group keep the trainer busy, how fast the run is, and what it costs.

A pretraining is a line of three stages: decoding on CPU cores, stylizing on GPUs (if a pool does it), training on GPUs. With buffers
between the stages it runs at the pace of the slowest stage, if the stages before the trainer have some spare capacity for their varying
times. A stage may also be limited by its nodes' network. Everything is calculated from rates that were measured on one core and one GPU.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from pydantic import Field, ValidationError

from ray_sassl.config.overrides import explain
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files.safe_yaml import load_document
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.errors import UsageError

_MOST_TRAINERS = 4096
_GRADIENT_BYTES = 4
_BYTES_OF_GBIT = 1e9 / 8


class PlanError(UsageError):
    """No plan reaches the target; the message says how near one comes."""


class Measured(FrozenConfig):
    """Rates of this experiment on the machines to rent, from short runs on one of each."""

    decode_images_per_core_s: float = Field(gt=0)
    """Images that one core reads, decodes and crops; with `stream.layout=fused` it also stylizes and finishes them."""
    train_images_per_gpu_s: float = Field(gt=0)
    """Images that one GPU trains on if it never waits for data."""
    stylize_images_per_gpu_s: float | None = Field(default=None, gt=0)
    """Images that one GPU stylizes and finishes with as many actors as fit on it."""
    train_step_cv: float = Field(default=0.02, ge=0, lt=1)
    """Standard deviation of a GPU's step time divided by its mean: in each step all GPUs wait for the slowest."""
    num_images: int | None = Field(default=None, gt=0)
    """Rows of the data set."""
    encoded_bytes_per_image: float = Field(default=110_000, gt=0)
    """Bytes per image in the shards; the default is about that of ImageNet."""
    num_parameters: int | None = Field(default=None, gt=0)
    """Trained parameters, whose gradients the training nodes exchange in every step."""
    startup_s: float = Field(default=300.0, ge=0)
    """Time from the command to the first step if no node is up yet."""


class NodeKind(FrozenConfig):
    """A kind of machine to rent."""

    cpus: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)
    network_gbit_s: float = Field(default=10.0, gt=0)
    """Sustained network rate in each direction."""
    usd_per_hour: float | None = Field(default=None, ge=0)


class Prices(FrozenConfig):
    """The machine of each group; the defaults have the sizes of those in `cluster/aws.yaml`, without prices."""

    head: NodeKind = NodeKind(cpus=8)
    decode: NodeKind = NodeKind(cpus=16)
    stylize: NodeKind = NodeKind(cpus=4, gpus=1)
    train: NodeKind = NodeKind(cpus=96, gpus=8, network_gbit_s=100)


@dataclass(frozen=True)
class Workload:
    """What a run demands of a cluster.

    Attributes:
        num_images: Rows of the data set.
        epochs: Passes over them.
        global_batch: Images per step.
        accumulate: Parts of a worker's share of the batch.
        has_pool: Whether a pool of actors stylizes; else decoding includes it.
        view_bytes: Size of all views of an image between the stages.
        task_cpus: CPUs of one task of the stream.
        worker_cpus: CPUs of one training worker.
        actor_cpus, actor_gpus: CPUs and GPUs of one stylizer.
        gradient_bytes: Bytes of gradients that are exchanged in every step.
    """

    num_images: int
    epochs: float
    global_batch: int
    accumulate: int
    has_pool: bool
    view_bytes: int
    task_cpus: float
    worker_cpus: float
    actor_cpus: float
    actor_gpus: float
    gradient_bytes: float


@dataclass(frozen=True)
class Counts:
    """Nodes of each group, and the GPUs that train."""

    decode: int
    stylize: int
    train: int
    trainers: int


@dataclass(frozen=True)
class Traffic:
    """Network traffic of one node of a group, in bytes per second; `received` includes what it reads from object storage."""

    received: float
    sent: float
    from_storage: float


@dataclass(frozen=True)
class Prediction:
    """The speed and cost of a run on a cluster with these counts.

    Attributes:
        images_per_s: Speed of the whole line.
        capacities: Images per second that each stage, and each group's network, could process by itself.
        bottleneck: The one with the least capacity.
        hours: Length of the whole run, including the start of the nodes.
        usd: Cost of the whole run, or None if a price is not known.
        traffic: Traffic of one node of each group.
    """

    counts: Counts
    images_per_s: float
    capacities: dict[str, float]
    bottleneck: str
    hours: float
    usd: float | None
    traffic: dict[str, Traffic]


@dataclass(frozen=True)
class Target:
    """The target of a plan; at most one is set. Without one, the plan has the config's number of training workers.

    Attributes:
        images_per_s: The least speed.
        hours: The longest time for the whole run.
        usd: The most that the whole run may cost; the plan is the fastest within it.
    """

    images_per_s: float | None = None
    hours: float | None = None
    usd: float | None = None


def read_measured(texts: dict[str, str], **given: Any) -> Measured:
    """Read measurements from JSON files; later files take precedence.

    Args:
        texts: Contents by file name.
        given: Fields that are used if the files do not have them; None means not given.

    Raises:
        UsageError: a file is not JSON, a field is unknown, or a rate is missing.
    """
    merged: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for source, text in texts.items():
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{source} is not JSON: {error}") from error
        if not isinstance(tree, dict):
            raise UsageError(f"{source} should be a mapping of rates, not {type(tree).__name__}")
        merged |= tree
    return _validated(Measured, merged, ", ".join(texts))


def read_prices(text: str, source: str) -> Prices:
    """Read prices from a YAML file.

    Raises:
        UsageError: it is not YAML, or not in the form of `Prices`.
    """
    return _validated(Prices, load_document(text, source) or {}, source)


def _validated(model: type, tree: Any, source: str) -> Any:
    try:
        return model.model_validate(tree)  # type: ignore[attr-defined]
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from error


def workload_of(config: ExperimentConfig, measured: Measured, *, has_pool: bool) -> Workload:
    """The workload of an experiment.

    Raises:
        UsageError: the measurements lack the number of images, or the stylizer's rate; or the pool's stylizers have no GPUs.
    """
    if measured.num_images is None:
        raise UsageError("the number of images is not known; give --images, or num_images in the measurements")
    if has_pool and measured.stylize_images_per_gpu_s is None:
        raise UsageError(
            "the experiment stylizes in a pool of actors, and nothing says how fast; give stylize_images_per_gpu_s among the measurements"
        )
    if has_pool and not config.stream.pool.num_gpus:
        raise UsageError(
            "stream.pool.num_gpus is 0, and a plan is for stylizers on GPUs; give the share of one that each takes, such as 0.25, or take "
            "stream.layout=fused, whose tasks both decode and stylize"
        )
    return Workload(
        num_images=measured.num_images,
        epochs=config.train.epochs,
        global_batch=config.train.global_batch,
        accumulate=config.train.accumulate,
        has_pool=has_pool,
        view_bytes=sum(size_px**2 for size_px in config.views.sizes_px) * 3,
        task_cpus=config.stream.num_cpus,
        worker_cpus=config.scaling.cpus_per_worker,
        actor_cpus=config.stream.pool.num_cpus,
        actor_gpus=config.stream.pool.num_gpus or 1.0,
        gradient_bytes=(measured.num_parameters or 0) * _GRADIENT_BYTES,
    )


def predict(workload: Workload, measured: Measured, prices: Prices, counts: Counts) -> Prediction:
    """Predict the speed and cost of a run on a cluster with these counts."""
    cores = _decode_cores(workload, prices, counts)
    capacities = {
        "decode": sum(cores.values()) * measured.decode_images_per_core_s / max(1.0, workload.task_cpus),
        "train": _train_capacity(workload, measured, counts.trainers),
    }
    if workload.has_pool:
        assert measured.stylize_images_per_gpu_s is not None
        capacities["stylize"] = counts.stylize * prices.stylize.gpus * measured.stylize_images_per_gpu_s
    per_image = _bytes_per_image(workload, measured, counts, cores)
    for group, (received, sent, _) in per_image.items():
        if (heavier := max(received, sent)) > 0:
            capacities[f"network of {group}"] = getattr(prices, group).network_gbit_s * _BYTES_OF_GBIT / heavier
    bottleneck = min(capacities, key=lambda name: capacities[name])
    rate = capacities[bottleneck]
    hours = math.inf if rate == 0 else workload.num_images * workload.epochs / rate / 3600 + measured.startup_s / 3600
    traffic = {group: Traffic(received * rate, sent * rate, stored * rate) for group, (received, sent, stored) in per_image.items()}
    return Prediction(counts, rate, capacities, bottleneck, hours, _usd(prices, counts, hours), traffic)


def plan(
    workload: Workload, measured: Measured, prices: Prices, target: Target = Target(), *, trainers: int = 1, headroom: float = 0.15
) -> Prediction:
    """The smallest cluster that reaches the target and whose trainers never wait.

    Args:
        trainers: GPUs that train, if there is no target.
        headroom: Spare capacity of decoding and stylizing, as a share of what the trainers need, because times vary and measured rates may
            be too good; 0.15 is our choice.

    Raises:
        PlanError: no number of GPUs reaches the target, the batch cannot be shared evenly among the trainers, or the machines have no room
            for what runs on them.
    """
    if target == Target():
        _check_machines(workload, prices)
        _check_shares(workload, trainers)
        return _around(workload, measured, prices, trainers, headroom)
    tried = list(curve(workload, measured, prices, headroom=headroom))
    if not tried:
        _check_shares(workload, 1)
    if target.usd is not None:
        return _within_budget(tried, target.usd)
    for prediction in tried:
        if target.images_per_s is not None and prediction.images_per_s >= target.images_per_s:
            return prediction
        if target.hours is not None and prediction.hours <= target.hours:
            return prediction
    best = max(tried, key=lambda prediction: prediction.images_per_s)
    raise PlanError(
        f"no number of GPUs reaches that: the fastest are {best.counts.trainers} with {best.images_per_s:,.0f} images/s and "
        f"{best.hours:.1f} hours, held back by {best.bottleneck} (global batch {workload.global_batch:,})"
    )


def _within_budget(tried: list[Prediction], usd: float) -> Prediction:
    if any(prediction.usd is None for prediction in tried):
        raise PlanError("a budget needs the price of every group; give usd_per_hour of each in --prices")
    affordable = [prediction for prediction in tried if prediction.usd is not None and prediction.usd <= usd]
    if not affordable:
        cheapest = min(tried, key=lambda prediction: prediction.usd or 0.0)
        raise PlanError(f"no cluster does it for {usd:,.0f} USD; the cheapest takes {cheapest.usd:,.0f} USD and {cheapest.hours:.1f} hours")
    return max(affordable, key=lambda prediction: prediction.images_per_s)


def curve(workload: Workload, measured: Measured, prices: Prices, *, headroom: float = 0.15) -> Iterator[Prediction]:
    """Plans for every number of GPUs that can share the batch evenly, up to the number beyond which more do not help.

    Raises:
        PlanError: the machines have no room for what runs on them.
    """
    _check_machines(workload, prices)
    fastest = 0.0
    for trainers in _possible_trainers(workload, prices):
        prediction = _around(workload, measured, prices, trainers, headroom)
        if prediction.images_per_s <= fastest * 1.001 and prediction.bottleneck.startswith("network"):
            return
        fastest = max(fastest, prediction.images_per_s)
        yield prediction


def _possible_trainers(workload: Workload, prices: Prices) -> Iterator[int]:
    """Numbers of GPUs that divide the global batch: parts of one node, then whole nodes."""
    per_node = prices.train.gpus
    for trainers in range(1, _MOST_TRAINERS + 1):
        if (trainers <= per_node or trainers % per_node == 0) and _can_share(workload, trainers):
            yield trainers


def _can_share(workload: Workload, trainers: int) -> bool:
    return workload.global_batch % (trainers * workload.accumulate) == 0


def _check_shares(workload: Workload, trainers: int) -> None:
    if _can_share(workload, trainers):
        return
    allowed = [count for count in range(1, _MOST_TRAINERS + 1) if _can_share(workload, count)]
    near = [*[count for count in allowed if count < trainers][-1:], *[count for count in allowed if count > trainers][:1]]
    advice = f"use {' or '.join(map(str, near))} workers" if near else "no number of workers divides it; change one of the two"
    raise PlanError(
        f"train.global_batch={workload.global_batch} does not divide by {trainers} workers x train.accumulate={workload.accumulate}; "
        f"{advice}"
    )


def _check_machines(workload: Workload, prices: Prices) -> None:
    if prices.train.gpus == 0 or (workload.has_pool and prices.stylize.gpus == 0):
        raise PlanError("the nodes that train or stylize have no GPUs; give gpus of each in --prices")
    if workload.has_pool and not _stylizers_per_node(workload, prices.stylize):
        raise PlanError(
            f"a stylizer takes {workload.actor_gpus:g} GPUs (stream.pool.num_gpus) and {workload.actor_cpus:g} CPUs "
            f"(stream.pool.num_cpus), and a "
            f"node that stylizes has {prices.stylize.gpus} and {prices.stylize.cpus}; ask for less, or give larger machines in --prices"
        )


def num_stylizers(workload: Workload, prices: Prices, counts: Counts) -> int:
    """The size of the pool in the plan: as many stylizers as its nodes have room for."""
    return counts.stylize * _stylizers_per_node(workload, prices.stylize) if workload.has_pool else 0


def _stylizers_per_node(workload: Workload, machine: NodeKind) -> int:
    """How many stylizers fit on a node; a share of a GPU must be on one card."""
    share = workload.actor_gpus
    on_gpus = machine.gpus * math.floor(1 / share + 1e-9) if share < 1 else math.floor(machine.gpus / share)
    return min(on_gpus, math.floor(machine.cpus / workload.actor_cpus + 1e-9)) if workload.actor_cpus else on_gpus


def _around(workload: Workload, measured: Measured, prices: Prices, trainers: int, headroom: float) -> Prediction:
    """The plan with this number of trainers, and enough nodes of the other groups to keep them busy."""
    train = math.ceil(trainers / prices.train.gpus)
    wanted = (1 + headroom) * _train_capacity(workload, measured, trainers)
    stylize = 0
    if workload.has_pool:
        assert measured.stylize_images_per_gpu_s is not None
        stylize = math.ceil(wanted / (measured.stylize_images_per_gpu_s * prices.stylize.gpus) - 1e-9)
    spare = sum(_decode_cores(workload, prices, Counts(0, stylize, train, trainers)).values())
    cores = wanted * max(1.0, workload.task_cpus) / measured.decode_images_per_core_s
    counts = Counts(max(0, math.ceil((cores - spare) / prices.decode.cpus - 1e-9)), stylize, train, trainers)
    while True:  # if a group's network is too slow, add nodes to the group
        prediction = predict(workload, measured, prices, counts)
        group = prediction.bottleneck.removeprefix("network of ")
        if prediction.bottleneck not in ("network of decode", "network of stylize"):
            return prediction
        more = {group: getattr(counts, group) + 1}
        counts = Counts(**{**counts.__dict__, **more})


def _decode_cores(workload: Workload, prices: Prices, counts: Counts) -> dict[str, float]:
    """Cores for tasks of the stream in each group: all of `decode`, and those that the other groups' own work does not need."""
    taken = num_stylizers(workload, prices, counts) * workload.actor_cpus
    return {
        "decode": float(counts.decode * prices.decode.cpus),
        "stylize": max(0.0, counts.stylize * prices.stylize.cpus - taken),
        "train": max(0.0, counts.train * prices.train.cpus - counts.trainers * workload.worker_cpus),
    }


def _train_capacity(workload: Workload, measured: Measured, trainers: int) -> float:
    """Images per second of trainers that wait for each other in every step."""
    return trainers * measured.train_images_per_gpu_s / (1 + measured.train_step_cv * expected_largest(trainers))


def expected_largest(count: int) -> float:
    """About the expected largest of `count` draws from a standard normal distribution (Blom, Statistical Estimates and Transformed
    Beta-Variables, 1958)."""
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def _bytes_per_image(
    workload: Workload, measured: Measured, counts: Counts, cores: dict[str, float]
) -> dict[str, tuple[float, float, float]]:
    """Bytes that one node of each group receives, sends and reads from storage, for each image of the whole line.

    Every hand-over counts as crossing the network, which is a little more than it is where a node feeds itself.
    """
    nodes = {"decode": counts.decode, "stylize": counts.stylize, "train": counts.train}
    all_cores = sum(cores.values()) or 1.0
    found = {}
    for group, count in nodes.items():
        if not count:
            continue
        share = cores[group] / all_cores / count
        stored, received, sent = (
            share * amount for amount in (measured.encoded_bytes_per_image, measured.encoded_bytes_per_image, workload.view_bytes)
        )
        if group == "stylize":
            received += workload.view_bytes / count
            sent += workload.view_bytes / count
        if group == "train":
            exchanged = 2 * (count - 1) / count * workload.gradient_bytes / workload.global_batch
            received += workload.view_bytes / count + exchanged
            sent += exchanged
        found[group] = (received, sent, stored)
    return found


def _usd(prices: Prices, counts: Counts, hours: float) -> float | None:
    rented = [(prices.head, 1), (prices.decode, counts.decode), (prices.stylize, counts.stylize), (prices.train, counts.train)]
    total = 0.0
    for kind, count in rented:
        if count and kind.usd_per_hour is None:
            return None
        total += count * (kind.usd_per_hour or 0.0)
    return total * hours
