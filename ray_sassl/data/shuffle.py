"""A global shuffle of a data set in two passes, so that no more than a shard and a portion of it are ever in memory.

The first pass reads portions of the source in order and writes each as a file with one record batch per shard of the target; the second
reads a shard's batch of every such file, brings its rows into their order and writes the shard. The order is a permutation of all rows,
uniform, by the seed alone. Both passes write whole files or none, so a shuffle that was stopped goes on with what is missing.

Every row is counted, and its bytes are hashed into a sum that does not depend on the order: those of the portions and of the shards must
agree, or the shuffle fails and keeps its work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ray_sassl.data import Rows
from ray_sassl.data.convert import Conversion, split_rows, write_bad_rows, write_parquet, write_webdataset
from ray_sassl.data.index import Index
from ray_sassl.data.plan import portions
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import read_groups
from ray_sassl.files import storage
from ray_sassl.files.json_files import parse_json
from ray_sassl.process.errors import UsageError

WORK = ".shuffle"
"""The folder in the target with the files between the passes, which take as much room as the images; it is removed at the end."""
_COPIES = 4
"""A portion or a shard takes up to so many times its bytes while it is sorted and written."""
_SUM = 2**64
_SCHEMA = pa.schema([("id", pa.int64()), ("image", pa.large_binary()), ("label", pa.int64()), ("key", pa.string())])


def new_places(num_rows: int, seed: int) -> np.ndarray:
    """(num_rows,) int64: the place of each row in the target, a uniform permutation."""
    return np.random.default_rng([seed, num_rows]).permutation(num_rows)


def source_portions(index: Index, memory_bytes: float) -> list[list[int]]:
    """The row groups of each portion; one is at least one row group."""
    row_bytes = max(1.0, index.num_bytes / index.num_rows)
    return portions(index, max(1, int(memory_bytes / _COPIES / row_bytes)))


def check_memory(index: Index, conversion: Conversion, memory_bytes: float) -> None:
    """Check that a shard fits into the memory of a task.

    Raises:
        UsageError: it does not.
    """
    row_bytes = max(1.0, index.num_bytes / index.num_rows)
    if _COPIES * row_bytes * min(conversion.shard_rows, index.num_rows) > memory_bytes:
        most = max(1, int(memory_bytes / _COPIES / row_bytes))
        raise UsageError(
            f"shards of {conversion.shard_rows:,} rows ({row_bytes * conversion.shard_rows / 1e9:.2g} GB) cannot be shuffled in "
            f"{memory_bytes / 1e9:g} GB of memory; give --shard-rows {most} or less, or --memory-gb "
            f"{_COPIES * row_bytes * conversion.shard_rows / 1e9:.2g} or more"
        )


def missing_portions(target: str, num_portions: int) -> list[int]:
    """The portions that are still to be scattered."""
    there = _work_files(target)
    return [portion for portion in range(num_portions) if _portion_name(portion) not in there]


def missing_shards(target: str, conversion: Conversion) -> list[int]:
    """The shards that are still to be written: those without their sum."""
    there = _work_files(target)
    return [shard for shard in range(conversion.num_shards) if _sum_name(shard) not in there]


def scatter(index: Index, conversion: Conversion, target: str, places: np.ndarray, portion: int, groups: Sequence[int]) -> list[BadRow]:
    """Write the row groups' rows as one batch for each shard; returns those that cannot be used, which are also listed in the target."""
    good, bad = split_rows(read_groups(index, groups))
    if bad:
        write_bad_rows(storage.join(target, f"portion-{portion:06d}.bad.jsonl"), bad, index.num_rows)
    shard = places[good.sample_id] // conversion.shard_rows
    order = np.argsort(shard, kind="stable")
    ends = np.searchsorted(shard[order], np.arange(conversion.num_shards), side="right")
    facts = {"rows": len(good), "sum": _sum_of(good)}
    with storage.open_atomic(storage.join(target, WORK, _portion_name(portion))) as file:
        schema = _SCHEMA.with_metadata({"facts": json.dumps(facts)})
        with pa.ipc.new_file(file, schema) as writer:
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                writer.write_batch(_batch(good.at(order[start:end])))
    return bad


def gather(index: Index, conversion: Conversion, target: str, places: np.ndarray, shard: int, num_portions: int) -> None:
    """Write the shard from its batches of all portions, and its sum when it is written."""
    columns: list[list[Any]] = [[], [], [], []]
    for portion in range(num_portions):
        with _open(target, portion) as source, pa.ipc.open_file(source) as file:
            batch = file.get_batch(shard)
            for column, values in zip(columns, batch.columns, strict=True):
                column += values.to_pylist()
    order = np.argsort(places[np.array(columns[0], np.int64)])
    ids, images, labels, keys = ([column[row] for row in order] for column in columns)
    del columns
    sample_id = np.array(ids, np.int64)
    rows = Rows(sample_id, images, np.array(labels, np.int64), keys, [""] * len(ids), sample_id)
    path = storage.join(target, conversion.shard_name(shard))
    if conversion.format == "parquet":
        write_parquet(path, rows, conversion, index.class_names)
    else:
        write_webdataset(path, rows, conversion)
    storage.write_text(storage.join(target, WORK, _sum_name(shard)), json.dumps({"rows": len(rows), "sum": _sum_of(rows)}))


def finish(target: str, conversion: Conversion, num_portions: int) -> int:
    """Check that the shards hold each row of the portions once, and remove the files between the passes; returns the number of rows.

    Raises:
        RuntimeError: they do not.
    """
    work, taken = storage.join(target, WORK), []
    try:
        for portion in range(num_portions):
            with _open(target, portion) as source, pa.ipc.open_file(source) as file:
                taken.append(parse_json((file.schema.metadata or {})[b"facts"], work))
        written = [parse_json(storage.read_bytes(storage.join(work, _sum_name(shard))), work) for shard in range(conversion.num_shards)]
        sides = [(sum(part["rows"] for part in parts), sum(part["sum"] for part in parts) % _SUM) for parts in (taken, written)]
    except (KeyError, TypeError, pa.ArrowInvalid) as error:
        raise UsageError(f"{work} is damaged ({type(error).__name__}: {error}); delete {target} and shuffle again") from error
    if sides[0] != sides[1]:
        raise RuntimeError(
            f"the shards in {target} hold {sides[1][0]:,} rows and the source {sides[0][0]:,}, or their bytes differ: a disk or a store "
            "lost what was written. Delete the folder and shuffle again."
        )
    storage.remove(storage.join(target, WORK))
    return sides[1][0]


def _batch(rows: Rows) -> pa.RecordBatch:
    key = [storage.name_of(key) for key in rows.key]
    arrays = [pa.array(rows.sample_id), pa.array(rows.encoded, pa.large_binary()), pa.array(rows.label), pa.array(key, pa.string())]
    return pa.record_batch(arrays, schema=_SCHEMA)


def _sum_of(rows: Rows) -> int:
    """A sum over the rows' ids, labels and bytes that does not depend on their order."""
    total = 0
    for id_, label, image in zip(rows.sample_id.tolist(), rows.label.tolist(), rows.encoded, strict=True):
        assert isinstance(image, bytes)
        total += int.from_bytes(
            hashlib.blake2b(image, digest_size=8, salt=f"{id_}".encode()[-16:], person=f"{label}".encode()[-16:]).digest()
        )
    return total % _SUM


def _open(target: str, portion: int) -> Any:
    path = storage.join(target, WORK, _portion_name(portion))
    filesystem, inner = storage.filesystem_of(path)
    return filesystem.open_input_file(inner)


def _work_files(target: str) -> set[str]:
    return {storage.name_of(entry.path) for entry in storage.list_dir(storage.join(target, WORK))}


def _portion_name(portion: int) -> str:
    return f"portion-{portion:06d}.arrow"


def _sum_name(shard: int) -> str:
    return f"shard-{shard:06d}.json"
