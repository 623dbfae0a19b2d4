"""How many nodes of each group keep the trainer busy, how fast that is, and what it costs.

A pretraining is a line of three stages: decoding on CPU cores, stylizing on GPUs (where a pool does it), training on GPUs. With room
between the stages it runs at the pace of the slowest, once the stages before the trainer have some capacity to spare for their ups and
downs. A stage may also be held back by its nodes' network. All of it follows from rates that were measured on one core and on one GPU.
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
from ray_sassl.plugins import FrozenConfig, UsageError

_MOST_TRAINERS = 4096
_GRADIENT_BYTES = 4
_BYTES_OF_GBIT = 1e9 / 8


class PlanError(UsageError):
    """What is asked for cannot be had; the message says what can."""


class Measured(FrozenConfig):
    """Rates of this experiment on the machines to be rented, from short runs on one of each."""

    decode_images_per_core_s: float = Field(gt=0)
    """Read, decoded and cropped by one core; with `stream.layout=fused` also stylized and finished."""
    train_images_per_gpu_s: float = Field(gt=0)
    """Trained on by one GPU that never waits for data."""
    stylize_images_per_gpu_s: float | None = Field(default=None, gt=0)
    """Stylized and finished by one GPU with as many actors as fit on it."""
    train_step_cv: float = Field(default=0.02, ge=0, lt=1)
    """Standard deviation of a GPU's step time over its mean: in each step all wait for the slowest."""
    num_images: int | None = Field(default=None, gt=0)
    """Rows of the data set."""
    encoded_bytes_per_image: float = Field(default=110_000, gt=0)
    """Bytes of an image in the shards; the default is about ImageNet's."""
    num_parameters: int | None = Field(default=None, gt=0)
    """Trained parameters, whose gradients the training nodes exchange in every step."""
    startup_s: float = Field(default=300.0, ge=0)
    """From the command to the first step where no node is up yet."""


class NodeKind(FrozenConfig):
    """A machine that can be rented."""

    cpus: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)
    network_gbit_s: float = Field(default=10.0, gt=0)
    """Each way, sustained."""
    usd_per_hour: float | None = Field(default=None, ge=0)


class Prices(FrozenConfig):
    """The machine of each group; the defaults are of the sizes of `cluster/aws.yaml`'s, without prices."""

    head: NodeKind = NodeKind(cpus=8)
    decode: NodeKind = NodeKind(cpus=16)
    stylize: NodeKind = NodeKind(cpus=4, gpus=1)
    train: NodeKind = NodeKind(cpus=96, gpus=8, network_gbit_s=100)


@dataclass(frozen=True)
class Workload:
    """What a run asks of a cluster, for each image.

    Attributes:
        num_images: Rows of the data set.
        epochs: Passes over them.
        global_batch: Images of a step.
        accumulate: Parts of a worker's share of it.
        has_pool: Whether a pool of actors stylizes; else decoding includes it.
        view_bytes: Of all views of an image, as they travel between the stages.
        task_cpus: CPUs of one task of the stream.
        worker_cpus: CPUs of one training worker.
        actor_cpus, actor_gpus: Of one stylizer.
        gradient_bytes: Exchanged in every step.
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
    """What one node of a group carries, in bytes a second; what it reads from object storage is part of `received`."""

    received: float
    sent: float
    from_storage: float


@dataclass(frozen=True)
class Prediction:
    """What a cluster of these counts will do.

    Attributes:
        images_per_s: Of the whole line.
        capacities: Images a second that each stage, and each group's network, could do alone.
        bottleneck: The one with the least.
        hours: Of the whole run, bringing the nodes up included.
        usd: Of the whole run, or None where a price is not known.
        traffic: Of one node of each group.
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
    """What is wanted of a plan; at most one is set. Without any, the config's number of training workers.

    Attributes:
        images_per_s: At least.
        hours: The whole run, at most.
        usd: The whole run, at most; of the plans that cost no more, the fastest.
    """

    images_per_s: float | None = None
    hours: float | None = None
    usd: float | None = None


def read_measured(texts: dict[str, str], **given: Any) -> Measured:
    """Of one or several JSON files, a later one over an earlier one.

    Args:
        texts: By the files' names.
        given: Fields from elsewhere; they stand where the files have none, and None stands for nothing.

    Raises:
        UsageError: no JSON, unknown fields, or a rate is missing.
    """
    merged: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for source, text in texts.items():
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise UsageError(f"{source} is no JSON: {error}") from error
        if not isinstance(tree, dict):
            raise UsageError(f"{source} holds no mapping of rates but {type(tree).__name__}")
        merged |= tree
    return _validated(Measured, merged, ", ".join(texts))


def read_prices(text: str, source: str) -> Prices:
    """Of a YAML file.

    Raises:
        UsageError: no YAML, or not of the form of `Prices`.
    """
    return _validated(Prices, load_document(text, source) or {}, source)


def _validated(model: type, tree: Any, source: str) -> Any:
    try:
        return model.model_validate(tree)  # type: ignore[attr-defined]
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from error


def workload_of(config: ExperimentConfig, measured: Measured, *, has_pool: bool) -> Workload:
    """What the experiment asks for.

    Raises:
        UsageError: the measurements lack the number of images, or the stylizer's rate; or the pool's stylizers have no GPUs.
    """
    if measured.num_images is None:
        raise UsageError("nothing says how many images the data set has; give --images, or num_images among the measurements")
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
    """What a cluster of these counts will do."""
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
    """The smallest cluster that reaches the target, its trainers never waiting.

    Args:
        trainers: GPUs that train, where there is no target.
        headroom: Capacity of decoding and stylizing beyond what the trainers take, for times that vary and rates that were measured on
            a better day; 0.15 is our choice.

    Raises:
        PlanError: no number of GPUs reaches the target, and the message says how near one comes; the batch cannot be shared among the
            trainers; or the machines have no room for what runs on them.
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
    """Plans for every number of GPUs that the batch can be shared among, up to where more of them help no more.

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
    """Parts of one node, then whole nodes, as the global batch divides."""
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
    advice = f"take {' or '.join(map(str, near))} workers" if near else "no number of workers will do; change one of the two"
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
    """The size of the pool for which the plan is: as many stylizers as its nodes have room for."""
    return counts.stylize * _stylizers_per_node(workload, prices.stylize) if workload.has_pool else 0


def _stylizers_per_node(workload: Workload, machine: NodeKind) -> int:
    """A share of a GPU lies on one card."""
    share = workload.actor_gpus
    on_gpus = machine.gpus * math.floor(1 / share + 1e-9) if share < 1 else math.floor(machine.gpus / share)
    return min(on_gpus, math.floor(machine.cpus / workload.actor_cpus + 1e-9)) if workload.actor_cpus else on_gpus


def _around(workload: Workload, measured: Measured, prices: Prices, trainers: int, headroom: float) -> Prediction:
    """The plan around so many trainers: enough of the other groups to keep them busy."""
    train = math.ceil(trainers / prices.train.gpus)
    wanted = (1 + headroom) * _train_capacity(workload, measured, trainers)
    stylize = 0
    if workload.has_pool:
        assert measured.stylize_images_per_gpu_s is not None
        stylize = math.ceil(wanted / (measured.stylize_images_per_gpu_s * prices.stylize.gpus) - 1e-9)
    spare = sum(_decode_cores(workload, prices, Counts(0, stylize, train, trainers)).values())
    cores = wanted * max(1.0, workload.task_cpus) / measured.decode_images_per_core_s
    counts = Counts(max(0, math.ceil((cores - spare) / prices.decode.cpus - 1e-9)), stylize, train, trainers)
    while True:  # a network that is too narrow for so many images takes more nodes of its group
        prediction = predict(workload, measured, prices, counts)
        group = prediction.bottleneck.removeprefix("network of ")
        if prediction.bottleneck not in ("network of decode", "network of stylize"):
            return prediction
        more = {group: getattr(counts, group) + 1}
        counts = Counts(**{**counts.__dict__, **more})


def _decode_cores(workload: Workload, prices: Prices, counts: Counts) -> dict[str, float]:
    """Cores for tasks of the stream in each group: all of `decode`, and what the others' own work leaves."""
    taken = num_stylizers(workload, prices, counts) * workload.actor_cpus
    return {
        "decode": float(counts.decode * prices.decode.cpus),
        "stylize": max(0.0, counts.stylize * prices.stylize.cpus - taken),
        "train": max(0.0, counts.train * prices.train.cpus - counts.trainers * workload.worker_cpus),
    }


def _train_capacity(workload: Workload, measured: Measured, trainers: int) -> float:
    """Images a second of trainers that wait for each other in every step."""
    return trainers * measured.train_images_per_gpu_s / (1 + measured.train_step_cv * expected_largest(trainers))


def expected_largest(count: int) -> float:
    """About the expected largest of so many draws from a standard normal distribution (Blom, Statistical Estimates and Transformed
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
