"""Work on whole data sets, as Ray tasks: decode everything to find bad rows, and convert to other shards.

Ray must have been initialized. The tasks import neither torch nor the training code, so their processes start in about a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.exceptions

from ray_sassl.data import DataConfig
from ray_sassl.data.convert import Conversion, ShardFormat, check_target, convert_shard, load_bad_rows, open_target, plan_conversion
from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index, large_groups
from ray_sassl.data.mixing import Mixing, mixing_of
from ray_sassl.data.overlap import Digests, Overlap, digests, overlap_of
from ray_sassl.data.plan import MIXED_ROWS, portions
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import each_group
from ray_sassl.data.shuffle import (
    WORK,
    check_memory,
    finish,
    gather,
    missing_portions,
    missing_shards,
    new_places,
    scatter,
    source_portions,
)
from ray_sassl.files import storage
from ray_sassl.files.own import mark_folder
from ray_sassl.orchestrate.batch.shared_index import shared_index
from ray_sassl.orchestrate.runtime.autoscaler import first_ended
from ray_sassl.orchestrate.runtime.capacity import Need
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.results import result_of
from ray_sassl.orchestrate.runtime.scanning import index_of

_CHECK_ROWS = 1024
_WAITING_TASKS_PER_CPU = 2
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class CheckResult:
    """The result of decoding every row.

    Attributes:
        num_rows: Rows of the data set.
        bad_rows: Rows and whole files that cannot be used, by sample id.
        overlap: The overlap with another data set, if it was asked for.
        mixing: How well batches of 256 of a run on these data will be mixed; None if there are fewer rows.
        large_groups: That row groups are so large that reading them takes much memory; None if they are not.
    """

    num_rows: int
    bad_rows: list[BadRow]
    overlap: Overlap | None = None
    mixing: Mixing | None = None
    large_groups: str | None = None


@dataclass(frozen=True)
class ConvertResult:
    """What the target folder has after a conversion.

    Attributes:
        num_rows: Rows in the shards.
        num_shards: Shards of the whole conversion.
        num_written: Shards that this call wrote; the others existed already.
        bad_rows: Rows of the source that are in no shard, and damaged files of the source.
    """

    num_rows: int
    num_shards: int
    num_written: int
    bad_rows: list[BadRow]


def check(config: DataConfig, *, overlap: DataConfig | None = None, show_progress: bool = True) -> CheckResult:
    """Decode every image of the data set and return all bad rows, however many there are.

    Args:
        config: The data set.
        overlap: Another data set, whose images are searched for in this one.
        show_progress: Whether to draw progress bars.

    Raises:
        UsageError: a data set cannot be indexed.
    """
    other = index_of(overlap, show_progress=show_progress) if overlap is not None else None
    index = index_of(config, show_progress=show_progress)
    quarantine = Quarantine(index.num_rows, max_bad_fraction=float("inf"))
    quarantine.add(index.problems)
    with shared_index(index) as shared, progress_bar("decoding", index.num_rows, is_shown=show_progress) as advance:
        for groups, bad in _run(_check_task, ray.put(shared), portions(index, _CHECK_ROWS)):
            quarantine.add(bad)
            advance(int(index.group_rows[groups].sum()))
    found = None
    if other is not None:
        sides = [_digests(side, show_progress) for side in (index, other)]
        found = overlap_of(index, sides[0], other, sides[1])
    mixing = mixing_of(index, config, MIXED_ROWS) if index.num_rows >= MIXED_ROWS else None
    return CheckResult(index.num_rows, quarantine.rows, found, mixing, large_groups(index))


def _digests(index: Index, show_progress: bool) -> list[Digests]:
    found = []
    with shared_index(index) as shared, progress_bar("comparing", index.num_rows, is_shown=show_progress) as advance:
        for groups, part in _run(_digest_task, ray.put(shared), portions(index, _CHECK_ROWS)):
            found.append(part)
            advance(int(index.group_rows[groups].sum()))
    return found


def convert(
    config: DataConfig,
    target: str,
    format_: ShardFormat,
    *,
    shard_rows: int = 4096,
    group_rows: int | None = None,
    shuffle: int | None = None,
    memory_gb: float = 2.0,
    show_progress: bool = True,
) -> ConvertResult:
    """Write the data set to the target folder as Parquet files or WebDataset shards. A call that was stopped is continued.

    Args:
        config: The source.
        target: A folder or URI that is empty or has a part of the same conversion.
        format_: Format to write.
        shard_rows: Rows per shard.
        group_rows: Rows per Parquet row group; see `plan_conversion`.
        shuffle: The seed of a new order of all rows.
        memory_gb: The images that a task holds while it shuffles, with their copies, in GB.
        show_progress: Whether to draw a progress bar.

    Raises:
        UsageError: the source cannot be indexed, the target has other content or is inside the source, or a shard does not fit into the
            memory.
        TooManyBadRowsError: more rows than `config.max_bad_fraction` cannot be copied; shards that were written stay.
    """
    check_target(target, config)
    index = index_of(config, show_progress=show_progress)
    conversion = plan_conversion(index, format_, shard_rows, group_rows, shuffle=shuffle)
    if shuffle is not None:
        check_memory(index, conversion, memory_gb * 1e9)
    # Any machine may write a shard, so the path must not be relative to the folder of a process.
    target = target if (local := storage.local_path(target)) is None else str(local)
    missing = open_target(target, conversion)
    mark_folder(target, known=None)
    quarantine = Quarantine(index.num_rows, config.max_bad_fraction)
    quarantine.add([*index.problems, *load_bad_rows(target)])
    if shuffle is not None and (missing or storage.exists(storage.join(target, WORK))):
        with shared_index(index) as shared:
            missing = _shuffle(shared, conversion, target, source_portions(index, memory_gb * 1e9), quarantine, show_progress=show_progress)
        return ConvertResult(_num_good(index, quarantine), conversion.num_shards, len(missing), quarantine.rows)
    there = conversion.num_shards - len(missing)
    bar = progress_bar("converting", conversion.num_shards, skipped=there, is_shown=show_progress)
    with shared_index(index) as shared, bar as advance:
        for _, bad in _run(_convert_task, ray.put((shared, conversion, target)), missing):
            quarantine.add(bad)
            advance(1)
    return ConvertResult(_num_good(index, quarantine), conversion.num_shards, len(missing), quarantine.rows)


def _num_good(index: Index, quarantine: Quarantine) -> int:
    return index.num_rows - sum(row.row >= 0 for row in quarantine.rows)


def _shuffle(
    index: Index, conversion: Conversion, target: str, parts: list[list[int]], quarantine: Quarantine, *, show_progress: bool
) -> list[int]:
    """Write all shards in two passes; returns the numbers of those that were missing."""
    assert conversion.shuffle is not None
    held = ray.put((index, conversion, target, len(parts)))
    places = ray.put(new_places(index.num_rows, conversion.shuffle))
    unread = missing_portions(target, len(parts))
    with progress_bar("scattering", len(parts), skipped=len(parts) - len(unread), is_shown=show_progress) as advance:
        for _, bad in _run(_scatter_task, held, [(places, portion, parts[portion]) for portion in unread]):
            quarantine.add(bad)
            advance(1)
    missing = missing_shards(target, conversion)
    there = conversion.num_shards - len(missing)
    with progress_bar("gathering", conversion.num_shards, skipped=there, is_shown=show_progress) as advance:
        for _ in _run(_gather_task, held, [(places, shard) for shard in missing]):
            advance(1)
    num_rows = finish(target, conversion, len(parts))
    assert num_rows == _num_good(index, quarantine), "each row is in a shard or is bad"
    return missing


@ray.remote(num_cpus=1)
def _scatter_task(held: tuple[Index, Conversion, str, int], item: tuple[ray.ObjectRef, int, list[int]]) -> list[BadRow]:
    index, conversion, target, _ = held
    places, portion, groups = item
    return scatter(index, conversion, target, ray.get(places), portion, groups)


@ray.remote(num_cpus=1)
def _gather_task(held: tuple[Index, Conversion, str, int], item: tuple[ray.ObjectRef, int]) -> None:
    index, conversion, target, num_portions = held
    places, shard = item
    gather(index, conversion, target, ray.get(places), shard, num_portions)


@ray.remote(num_cpus=1)
def _check_task(index: Index, groups: Sequence[int]) -> list[BadRow]:
    bad: list[BadRow] = []
    for rows in each_group(index, groups):
        found = decode_rows(rows, index.config.max_pixels, lambda _: None)
        bad += [row for row in found if row is not None]
    return bad


@ray.remote(num_cpus=1)
def _digest_task(index: Index, groups: Sequence[int]) -> Digests:
    return digests(index, groups)


@ray.remote(num_cpus=1)
def _convert_task(held: tuple[Index, Conversion, str], shard: int) -> list[BadRow]:
    index, conversion, target = held
    return convert_shard(index, conversion, target, shard)


def _run(task: Any, held: ray.ObjectRef, items: Sequence[_Item]) -> Iterator[tuple[_Item, Any]]:
    """Each item with its task's result, in the order in which they end. Ray gets only as many tasks as keep its CPUs busy."""
    waiting: dict[ray.ObjectRef, _Item] = {}
    left = iter(items)
    try:
        while True:
            at_once = max(4, _WAITING_TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 1)))
            while len(waiting) < at_once and (item := next(left, None)) is not None:
                waiting[task.remote(held, item)] = item
            if not waiting:
                return
            ended = first_ended(list(waiting), [Need("a task", 1, {"CPU": 1})])
            result = result_of(ended)
            yield waiting.pop(ended), result
    finally:
        for ref in waiting:
            with suppress(ray.exceptions.RayError):
                ray.cancel(ref)
