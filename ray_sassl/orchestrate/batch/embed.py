"""Features of whole data sets as Parquet, on a pool of Ray actors. Ray must have been initialized.

Ray carries the encoder to the actors and the features back, so nodes need access to the data and nothing else. The driver writes each part
completely or not at all, and a job that was stopped makes only the missing parts when it is run again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa
import ray
import torch
from ray.actor import ActorHandle

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.exporting.embedding import (
    PART_ROWS,
    Embedder,
    EmbeddingPlan,
    check_same,
    merge_parts,
    open_parts,
    parts_bad_rows,
    parts_of,
    plan_of,
    write_part,
)
from ray_sassl.exporting.encoder import Encoder, encoder_bytes, encoder_from_bytes
from ray_sassl.files import storage
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig, actor_pool, spread
from ray_sassl.orchestrate.batch.shared_index import shared_index
from ray_sassl.orchestrate.runtime.devices import device_type
from ray_sassl.orchestrate.runtime.progress import progress_bar
from ray_sassl.orchestrate.runtime.scanning import index_of
from ray_sassl.orchestrate.runtime.weights import keep, kept
from ray_sassl.process.errors import UsageError

_FILE_EXTENSIONS = (".parquet", ".pq")


@dataclass(frozen=True)
class EmbedResult:
    """The result of `embed_dataset`.

    Attributes:
        out: The file or folder.
        num_rows: Rows with features.
        num_features: Number of features per row.
        num_parts: Parts of the whole job.
        num_made: Parts that this call made; the others existed already.
        num_made_rows: Rows of the data set that these parts cover.
        seconds: How long making them took, including the start of the actors.
        bad_rows: Rows of the data set that have no features, and damaged files of the data set.
        bad_rows_path: The file that lists them, or None if there are none.
    """

    out: str
    num_rows: int
    num_features: int
    num_parts: int
    num_made: int
    num_made_rows: int
    seconds: float
    bad_rows: list[BadRow]
    bad_rows_path: str | None


class EmbedWorker:
    """One actor: the encoder, and threads that decode."""

    def __init__(self, num_cpus: float, num_gpus: float) -> None:
        self._device = torch.device(device_type(num_gpus))
        self._num_threads = max(1, int(num_cpus))
        self._embedder: Embedder | None = None

    def part(self, keeper: ActorHandle, held: tuple[Index, EmbeddingPlan], groups: list[int]) -> tuple[pa.Table, list[BadRow]]:
        """The table of these row groups and their bad rows."""
        if self._embedder is None:
            self._embedder = Embedder(encoder_from_bytes(kept(keeper)), self._device, self._num_threads)
        return self._embedder.part(*held, groups)


def is_one_file(out: str) -> bool:
    """Whether `out` names a file, and not a folder."""
    return storage.name_of(out).endswith(_FILE_EXTENSIONS)


def parts_folder(out: str) -> str:
    """The folder of the parts, until they are joined where `out` names a file."""
    return _beside(out, ".parts") if is_one_file(out) else out


def embed_dataset(
    encoder: Encoder, data: DataConfig, out: str, pool: ActorPoolConfig, *, part_rows: int = PART_ROWS, show_progress: bool = True
) -> EmbedResult:
    """Write the features of a data set's images with their ids, keys and labels. A call that was stopped is continued.

    Args:
        encoder: The encoder.
        data: Images, with or without labels.
        out: Local path or URI of a file that ends in `.parquet`, or of a folder for one file per part. The parts of a single file are in
            `NAME.parts` next to it until all are made.
        part_rows: About how many rows a part has, the unit of work and of resuming; a row group is never split.

    Raises:
        UsageError: the data set cannot be indexed, or `out` has other features.
        TooManyBadRowsError: more rows than `data.max_bad_fraction` cannot be decoded; parts that were made stay.
    """
    if part_rows < 1:
        raise UsageError(f"part_rows={part_rows}: a part needs at least 1 row")
    index = index_of(data, show_progress=show_progress)
    plan = EmbeddingPlan.of(index, encoder.facts, part_rows)
    is_file = is_one_file(out)
    bad_path = _beside(out, ".bad.jsonl") if is_file else storage.join(out, "bad.jsonl")
    quarantine = Quarantine(index.num_rows, data.max_bad_fraction)
    quarantine.add(index.problems)
    if is_file and storage.exists(out):
        check_same(plan_of(out) or {}, plan, out)
        quarantine.load_jsonl(bad_path)
        return _result(out, plan, [], 0.0, quarantine, bad_path)
    folder = parts_folder(out)
    todo = open_parts(folder, plan)
    quarantine.add(parts_bad_rows(folder))
    began = time.monotonic()
    made = _make(encoder, index, plan, folder, todo, quarantine, pool, show_progress) if todo else []
    seconds = time.monotonic() - began
    if quarantine.num_bad:
        quarantine.save_jsonl(bad_path)
    if is_file:
        merge_parts(folder, plan, out)
        storage.remove(folder)
    return _result(out, plan, made, seconds, quarantine, bad_path)


def _make(
    encoder: Encoder,
    index: Index,
    plan: EmbeddingPlan,
    folder: str,
    todo: list[int],
    quarantine: Quarantine,
    pool: ActorPoolConfig,
    show_progress: bool,
) -> list[int]:
    """Make and write the parts; returns how many rows of the data set each covers."""
    parts = parts_of(index, plan.part_rows)
    rows = [int(index.group_rows[groups].sum()) for groups in parts]
    keeper = keep(encoder_bytes(encoder))
    skipped = plan.num_rows - sum(rows[part] for part in todo)
    with (
        shared_index(index) as shared,
        actor_pool(EmbedWorker, (pool.num_cpus, pool.num_gpus), pool, len(todo)) as workers,
        progress_bar("embedding", plan.num_rows, skipped=skipped, is_shown=show_progress) as advance,
    ):
        held = ray.put((shared, plan))
        for part, (table, bad) in spread(workers, lambda actor, part: actor.part.remote(keeper, held, parts[part]), todo):
            write_part(folder, part, table, bad)
            quarantine.add(bad)
            advance(rows[part])
    return [rows[part] for part in todo]


def _result(out: str, plan: EmbeddingPlan, made: list[int], seconds: float, quarantine: Quarantine, bad_path: str) -> EmbedResult:
    num_lost = sum(row.row >= 0 for row in quarantine.rows)
    return EmbedResult(
        out,
        plan.num_rows - num_lost,
        plan.encoder.num_features,
        plan.num_parts,
        len(made),
        sum(made),
        seconds,
        quarantine.rows,
        bad_path if quarantine.num_bad else None,
    )


def _beside(path: str, ending: str) -> str:
    """The path with an ending added to its name; a URI keeps its options."""
    return storage.join(storage.parent(path), storage.name_of(path) + ending)
