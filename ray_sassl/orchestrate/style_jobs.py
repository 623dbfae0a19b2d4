"""Style transfer over whole data sets, on a pool of Ray actors: banks of style codes, and stylised copies.

Ray must have been initialised. Each actor holds the stylizer and its weights; it is handed runs of row groups or whole shards, so that
what an actor was doing when it died is done again by its successor, and a shard is there whole or not at all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import ray
import torch
from ray.actor import ActorHandle

from ray_sassl import storage
from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.convert import Conversion, ShardFormat, convert_shard, load_bad_rows, open_target, plan_conversion
from ray_sassl.data.index import Index, build_index, read_groups
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.styles import StyleBank
from ray_sassl.orchestrate.actor_pool import ActorPoolConfig, actor_pool, result_of, spread
from ray_sassl.orchestrate.data_jobs import ConvertResult
from ray_sassl.orchestrate.progress import progress_bar
from ray_sassl.orchestrate.weights import keep_weights, receive_weights
from ray_sassl.stylized import Restyler, StyleJobConfig, change_of


@dataclass(frozen=True)
class BankResult:
    """What `make_bank` has written.

    Attributes:
        num_styles: Styles in the bank.
        bundle_id: Their code space.
        bad_rows: Rows of the source whose style could not be computed.
    """

    num_styles: int
    bundle_id: str
    bad_rows: list[BadRow]


class StyleWorker:
    """One actor: the stylizer and what it is told to do with it."""

    def __init__(self, config_json: str, num_cpus: float, num_gpus: float, keeper: ActorHandle | None) -> None:
        config = StyleJobConfig.model_validate_json(config_json)
        receive_weights(config.stylize, keeper)
        self._restyler = Restyler.build(config, torch.device("cuda" if num_gpus else "cpu"), max(1, int(num_cpus)))

    def bundle_id(self) -> str:
        return self._restyler.stylizer.bundle_id

    def codes(self, index: Index, group: int) -> tuple[np.ndarray, list[str], list[BadRow]]:
        """The codes of a row group's images, their names and the bad rows."""
        codes, keys, bad = self._restyler.codes(read_groups(index, [group]), index.config.max_pixels)
        return codes, [key.removeprefix(index.root) for key in keys], bad

    def shard(self, index: Index, conversion: Conversion, target: str, copy: int, shard: int) -> list[BadRow]:
        """Write one shard of a stylised copy."""

        def change(rows: Rows) -> tuple[Rows, list[BadRow]]:
            return self._restyler.repaint(rows, copy, index.config.max_pixels)

        return convert_shard(index, conversion, target, shard, change)


def make_bank(data: DataConfig, out: str, config: StyleJobConfig, pool: ActorPoolConfig, *, show_progress: bool = True) -> BankResult:
    """Compute the style codes of a data set's images and write them as a bank.

    Raises:
        UsageError: the data set cannot be indexed, the stylizer has no weights, or no image can be used.
        TooManyBadRowsError: more rows than `data.max_bad_fraction` cannot be decoded.
    """
    index = build_index(data)
    quarantine = Quarantine(index.num_rows, data.max_bad_fraction)
    quarantine.add(index.problems)
    held = ray.put(index)
    parts: dict[int, tuple[np.ndarray, list[str]]] = {}
    with _style_workers(config, pool, index.num_groups) as workers:
        bundle_id = result_of(workers[0].bundle_id.remote())
        with progress_bar("computing styles", index.num_rows, is_shown=show_progress) as advance:
            for group, (codes, names, bad) in spread(
                workers, lambda actor, group: actor.codes.remote(held, group), range(index.num_groups)
            ):
                quarantine.add(bad)
                parts[group] = codes, names
                advance(int(index.group_rows[group]))
    in_order = [parts[group] for group in sorted(parts)]
    codes = np.concatenate([codes for codes, _ in in_order]) if in_order else np.empty((0, 0), np.float32)
    StyleBank.of(codes, [name for _, names in in_order for name in names], bundle_id).save(out)
    return BankResult(len(codes), bundle_id, quarantine.rows)


def stylize_dataset(
    data: DataConfig,
    target: str,
    config: StyleJobConfig,
    pool: ActorPoolConfig,
    *,
    format_: ShardFormat | None = None,
    copies: int = 1,
    shard_rows: int = 1024,
    show_progress: bool = True,
) -> ConvertResult:
    """Write stylised copies of a data set, with its labels, keys and order; a call that was stopped goes on where it was.

    Args:
        target: A folder or URI that is empty or holds the beginnings of this very job; several copies go to `copy-0`, `copy-1`, ... in it.
        format_: Of the copies; that of the source where not given.
        copies: Each with draws of its own.
        shard_rows: Rows of a shard, the unit of work and of resuming.

    Raises:
        UsageError: the source cannot be indexed, the target holds something else, or the stylizer has no weights.
        TooManyBadRowsError: more rows than `data.max_bad_fraction` cannot be used; what was written stays.
    """
    index = build_index(data)
    target = target if (local := storage.local_path(target)) is None else str(local)
    targets = [target] if copies == 1 else [storage.join(target, f"copy-{copy}") for copy in range(copies)]
    plans = [plan_conversion(index, format_ or index.format, shard_rows, change=change_of(config, copy)) for copy in range(copies)]
    items = [(copy, shard) for copy, (plan, where) in enumerate(zip(plans, targets, strict=True)) for shard in open_target(where, plan)]
    held = ray.put(index)
    quarantines = [Quarantine(index.num_rows, data.max_bad_fraction) for _ in range(copies)]
    for quarantine, where in zip(quarantines, targets, strict=True):
        quarantine.add([*index.problems, *load_bad_rows(where)])

    def rows_of(shard: int) -> int:
        return min(shard_rows, index.num_rows - shard * shard_rows)

    def start(actor: ActorHandle, item: tuple[int, int]) -> ray.ObjectRef:
        copy, shard = item
        return actor.shard.remote(held, plans[copy], targets[copy], copy, shard)

    todo = sum(rows_of(shard) for _, shard in items)
    skipped = copies * index.num_rows - todo
    if items:
        with (
            _style_workers(config, pool, len(items)) as workers,
            progress_bar("stylising", copies * index.num_rows, skipped=skipped, is_shown=show_progress) as advance,
        ):
            for (copy, shard), bad in spread(workers, start, items):
                quarantines[copy].add(bad)
                advance(rows_of(shard))
    bad_rows = [row for quarantine in quarantines for row in quarantine.rows]
    num_lost = sum(row.row >= 0 for row in bad_rows)
    return ConvertResult(copies * index.num_rows - num_lost, sum(plan.num_shards for plan in plans), len(items), bad_rows)


def _style_workers(config: StyleJobConfig, pool: ActorPoolConfig, num_items: int) -> AbstractContextManager[list[ActorHandle]]:
    return actor_pool(StyleWorker, (config.model_dump_json(), pool.num_cpus, pool.num_gpus, keep_weights(config.stylize)), pool, num_items)
