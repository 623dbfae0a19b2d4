"""Checks of a job before anything is sent: whether its data exist, and whether the cluster could ever run it."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import SYNTHETIC, DataConfig
from ray_sassl.data.hub import is_hub
from ray_sassl.data.sources import find_sources
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.preflight import check_workers, resource_needs
from ray_sassl.orchestrate.runtime.capacity import Need, check_fits
from ray_sassl.process.errors import UsageError


@dataclass(frozen=True)
class JobCommand:
    """A command that can run as a job.

    Attributes:
        verb: The command's name, such as `pretrain`.
        words: The command to run on the cluster; a second run of it continues the first.
        target: Where it writes.
        config: Config of the run, or of a search's trials; None if nothing is trained.
        data: The data sets that it reads, by the name of their setting.
        files: Other files that it reads, by the name of their setting.
        actors: CPUs and GPUs that it holds at once, if it trains nothing.
        notes: What could not be checked from this machine.
    """

    verb: str
    words: list[str]
    target: str
    config: ExperimentConfig | None = None
    data: dict[str, DataConfig] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    actors: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_place(path: str, what: str) -> None:
    """Check that a path means the same on every node.

    Raises:
        UsageError: it is relative; a job runs in a temporary folder.
    """
    if not storage.is_uri(path) and not path.startswith("/"):
        raise UsageError(
            f"{what} is {path!r}, and a job runs in a temporary folder on the cluster; give a URI (s3://, gs://) or an absolute path that "
            "all nodes share"
        )


def check_data(config: DataConfig, what: str, sent: frozenset[str] = frozenset()) -> list[str]:
    """Check that the data exist, as far as this machine can see; returns notes on what could not be checked.

    Args:
        what: The field or argument that names them.
        sent: Files that are sent with the job.

    Raises:
        UsageError: they do not exist, or a relative path is not sent with the job.
    """
    notes = []
    for path in config.paths:
        if path in SYNTHETIC or is_hub(path):
            continue
        if path.startswith("/") and not storage.exists(path):
            notes.append(f"{what}: {path} is not on this machine, so only the cluster can tell whether it exists")
            continue
        if not _travels(path, sent):
            check_place(path, what)
        find_sources(config.model_copy(update={"path": path}))
    return notes


def check_file(path: str, what: str, sent: frozenset[str] = frozenset()) -> list[str]:
    """Check that a file or a run directory exists, as far as this machine can see; returns notes on what could not be checked.

    Args:
        what: The field or argument that names it.
        sent: Files that are sent with the job.

    Raises:
        UsageError: it does not exist, or a relative path is not sent with the job.
    """
    if storage.is_uri(path):
        if not storage.exists(path) and not storage.list_dir(path):
            raise UsageError(f"{what} is {path!r}, which does not exist")
    elif not path.startswith("/"):
        if not _travels(path, sent):
            raise UsageError(
                f"{what} is {path!r}, which is not sent with the job: it is not in --working-dir, or Git ignores it. Give a URI, or a file "
                "in that folder"
            )
    elif not storage.exists(path):
        return [f"{what}: {path} is not on this machine, so only the cluster can tell whether it exists"]
    return []


def check_resources(config: ExperimentConfig, offered: Mapping[str, float], *, is_all: bool) -> None:
    """Check that the cluster could run it.

    Args:
        offered: CPUs and GPUs of the cluster, at its largest if known.
        is_all: Whether that is the cluster at its largest; otherwise the message says how to give it.

    Raises:
        ResourcesError: the run holds more at once than the cluster has.
        UsageError: the batch or the method does not allow so many workers.
    """
    check_workers(config)
    if config.scaling.num_workers == 0:
        return
    use_gpu = config.scaling.use_gpu
    if use_gpu is None:
        use_gpu = offered.get("GPU", 0.0) >= config.scaling.num_workers
    check_fits(resource_needs(config, use_gpu), lambda name: offered.get(name, 0.0), "the job", _hint(is_all))


def check_actors(actors: Mapping[str, float], offered: Mapping[str, float], *, is_all: bool) -> None:
    """Check that the cluster has room for the actors or tasks of a job that does not train.

    Args:
        actors: What they hold at once.
        offered, is_all: As for `check_resources`.

    Raises:
        ResourcesError: they hold more than the cluster has.
    """
    check_fits([Need("its actors or tasks", 1, actors)], lambda name: offered.get(name, 0.0), "the job", _hint(is_all))


def _hint(is_all: bool) -> str:
    return "" if is_all else " If it grows by itself, give its definition with --cluster FILE."


def _travels(path: str, sent: frozenset[str]) -> bool:
    """Whether a file at this relative path, below it, or matching it is sent with the job."""
    name = path.removeprefix("./").rstrip("/")
    return name in sent or any(one.startswith(f"{name}/") or fnmatch.fnmatch(one, name) for one in sent)
