"""Style transfer over whole data sets, on a pool of Ray actors: banks of style codes, and stylized copies.

Each actor has the stylizer and its weights, and gets row groups or whole shards. If it dies, its successor does that work again, and a
shard is written completely or not at all. Errors that users can make are found before Ray is started and before anything is written.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ray_sassl.config.files import model_from_yaml, to_yaml
from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.convert import (
    MANIFEST,
    Conversion,
    ShardFormat,
    check_target,
    convert_shard,
    load_bad_rows,
    open_target,
    plan_conversion,
)
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files import storage
from ray_sassl.files.own import mark_folder
from ray_sassl.files.paths import with_absolute_paths
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig, actor_pool, num_wanted, spread
from ray_sassl.orchestrate.batch.data import ConvertResult
from ray_sassl.orchestrate.batch.shared_index import shared_index
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.orchestrate.runtime.weights import keep_weights, receive_weights
from ray_sassl.process.console import open_console
from ray_sassl.process.errors import UsageError
from ray_sassl.style.bank import StyleBank
from ray_sassl.style.datasets import DatasetStylizer, StyleJobConfig, change_of, check_job

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BankResult:
    """What `make_bank` has written.

    Attributes:
        num_styles: Number of styles in the bank.
        bundle_id: Their code space.
        bad_rows: Rows of the source whose style could not be computed.
        notes: Messages for the user.
    """

    num_styles: int
    bundle_id: str
    bad_rows: list[BadRow]
    notes: list[str]


@dataclass(frozen=True)
class StylizeResult(ConvertResult):
    """What the target folder of `stylize_dataset` has; counts are over all copies, and a bad row is listed once.

    Attributes:
        notes: Messages for the user about the shards that this call has written.
    """

    notes: list[str]


class StyleWorker:
    """One actor with the stylizer."""

    def __init__(self, config_yaml: str, num_cpus: float, num_gpus: float, keeper: ActorHandle | None) -> None:
        config = model_from_yaml(StyleJobConfig, config_yaml)
        receive_weights(config.stylize, keeper)
        self._dataset_stylizer = DatasetStylizer.build(config, torch.device(device_type(num_gpus)), max(1, int(num_cpus)))

    def codes(self, index: Index, group: int) -> tuple[np.ndarray, list[str], list[BadRow], list[str]]:
        """The codes of a row group's images, their names, the bad rows and notes for the user."""
        codes, keys, bad = self._dataset_stylizer.codes(read_groups(index, [group]), index.config.max_pixels)
        return codes, [key.removeprefix(index.root) for key in keys], bad, self._notes()

    def shard(self, index: Index, conversion: Conversion, target: str, copy: int, shard: int) -> tuple[list[BadRow], list[str]]:
        """Write one shard of a stylized copy; returns the bad rows and notes for the user."""

        def change(rows: Rows) -> tuple[Rows, list[BadRow]]:
            return self._dataset_stylizer.stylize(rows, copy, index.config.max_pixels)

        return convert_shard(index, conversion, target, shard, change), self._notes()

    def _notes(self) -> list[str]:
        notes, self._dataset_stylizer.notes = self._dataset_stylizer.notes, []
        return notes


def make_bank(
    data: DataConfig, out: str, config: StyleJobConfig, pool: ActorPoolConfig, *, address: str | None = None, show_progress: bool = True
) -> BankResult:
    """Do the work of `ray_sassl.build_style_bank`."""
    storage.check_can_write(out)
    config = with_absolute_paths(config)
    bundle_id = check_job(config)
    index = build_index(data)
    quarantine = Quarantine(index.num_rows, data.max_bad_fraction)
    quarantine.add(index.problems)
    parts: dict[int, tuple[np.ndarray, list[str]]] = {}
    notes: list[str] = []
    with (
        ray_session(address),
        shared_index(index) as shared,
        _style_workers(config, pool, index.num_groups, show_progress) as workers,
        progress_bar("computing styles", index.num_rows, is_shown=show_progress) as advance,
    ):
        held = ray.put(shared)
        for group, (codes, names, bad, noted) in spread(
            workers, lambda actor, group: actor.codes.remote(held, group), range(index.num_groups)
        ):
            quarantine.add(bad)
            _note(notes, noted)
            parts[group] = codes, names
            advance(int(index.group_rows[group]))
    in_order = [parts[group] for group in sorted(parts)]
    codes = np.concatenate([codes for codes, _ in in_order])
    StyleBank.of(codes, [name for _, names in in_order for name in names], bundle_id).save(out)
    return BankResult(len(codes), bundle_id, quarantine.rows, notes)


def stylize_dataset(
    data: DataConfig,
    target: str,
    config: StyleJobConfig,
    pool: ActorPoolConfig,
    *,
    format_: ShardFormat | None = None,
    copies: int = 1,
    shard_rows: int = 1024,
    address: str | None = None,
    show_progress: bool = True,
) -> StylizeResult:
    """Do the work of `ray_sassl.stylize_dataset`."""
    target = target if (local := storage.local_path(target)) is None else str(local)
    _check_target(target, data, copies)
    config = with_absolute_paths(config)
    code_space = check_job(config)
    index = build_index(data)
    targets = [target] if copies == 1 else [storage.join(target, f"copy-{copy}") for copy in range(copies)]
    changes = [change_of(config, copy, code_space) for copy in range(copies)]
    plans = [plan_conversion(index, format_ or index.format, shard_rows, change=change) for change in changes]
    items = [(copy, shard) for copy, (plan, where) in enumerate(zip(plans, targets, strict=True)) for shard in open_target(where, plan)]
    mark_folder(target, known=None)  # of several copies only what is around them, so that all can be read as one data set
    quarantines = [Quarantine(index.num_rows, data.max_bad_fraction) for _ in range(copies)]
    for quarantine, where in zip(quarantines, targets, strict=True):
        quarantine.add([*index.problems, *load_bad_rows(where)])
    notes: list[str] = []
    if items:
        with ray_session(address):
            notes = _write_shards(config, pool, index, plans, targets, items, quarantines, show_progress)
    num_lost = sum(row.row >= 0 for quarantine in quarantines for row in quarantine.rows)
    every = Quarantine(index.num_rows, max_bad_fraction=float("inf"))
    for quarantine in quarantines:
        every.add(quarantine.rows)
    num_shards = sum(plan.num_shards for plan in plans)
    return StylizeResult(copies * index.num_rows - num_lost, num_shards, len(items), every.rows, notes)


def _write_shards(
    config: StyleJobConfig,
    pool: ActorPoolConfig,
    index: Index,
    plans: list[Conversion],
    targets: list[str],
    items: list[tuple[int, int]],
    quarantines: list[Quarantine],
    show_progress: bool,
) -> list[str]:
    """Write the shards (copy, shard) of `items` and add bad rows to the quarantine of their copy; returns notes for the user."""

    def rows_of(shard: int) -> int:
        return min(plans[0].shard_rows, index.num_rows - shard * plans[0].shard_rows)

    def start(actor: ActorHandle, item: tuple[int, int]) -> ray.ObjectRef:
        copy, shard = item
        return actor.shard.remote(held, plans[copy], targets[copy], copy, shard)

    total = len(plans) * index.num_rows
    skipped = total - sum(rows_of(shard) for _, shard in items)
    notes: list[str] = []
    with (
        shared_index(index) as shared,
        _style_workers(config, pool, len(items), show_progress) as workers,
        progress_bar("stylizing", total, skipped=skipped, is_shown=show_progress) as advance,
    ):
        held = ray.put(shared)
        for (copy, shard), (bad, noted) in spread(workers, start, items):
            quarantines[copy].add(bad)
            _note(notes, noted)
            advance(rows_of(shard))
    return notes


def _check_target(target: str, data: DataConfig, copies: int) -> None:
    """Refuse a target that cannot be written, is read as part of the source, or has content other than the copies."""
    storage.check_can_write(target, is_folder=True)
    check_target(target, data)
    if copies > 1:
        others = [name for name in map(storage.name_of, (entry.path for entry in storage.list_dir(target))) if not _is_of_copies(name)]
        if MANIFEST in others:
            raise UsageError(f"{target} has a single copy, which is not the first of {copies}; choose another folder")
        if others:
            raise UsageError(f"{target} is not empty: it has {', '.join(others[:3])}; choose another folder")


def _is_of_copies(name: str) -> bool:
    return name.startswith(".") or re.fullmatch(r"copy-\d+", name) is not None


@contextmanager
def _style_workers(config: StyleJobConfig, pool: ActorPoolConfig, num_items: int, show_progress: bool) -> Iterator[list[ActorHandle]]:
    """The actors, at least one of them ready for work, so that rates do not include the time of starting."""
    args = (to_yaml(config), pool.num_cpus, pool.num_gpus, keep_weights(config.stylize))
    if show_progress:
        count = max(1, min(num_wanted(pool), num_items))
        share = f"{pool.num_cpus:g} CPU" + (f" and {pool.num_gpus:g} GPU" if pool.num_gpus else "")
        open_console().print(f"starting {count} actor{'s' * (count > 1)} of {share} ...")
    with actor_pool(StyleWorker, args, pool, num_items) as workers:
        yield workers


def _note(notes: list[str], new: list[str]) -> None:
    """Add the notes that are new, and log them at once."""
    for note in new:
        if note not in notes:
            notes.append(note)
            log.warning("%s", note)
