"""Parquet files with a column of encoded images, like most data sets on hubs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ray_sassl.data import NO_LABEL, DataConfig, Rows, ShardReader, ShardScan
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.remote_parquet import open_remote, open_remote_group
from ray_sassl.files import storage
from ray_sassl.files.json_files import parse_json
from ray_sassl.files.s3 import Stamp
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_NAME_COLUMN = "key"
"""The name that `data convert` gives the column."""
_NAMES_KEY = "ray_sassl.class_names"
_BATCH_BYTES = 2**23
_BUFFER_BYTES = 2**20
_THREADS = 16


class ParquetReader(ShardReader):
    """Reads the row groups of the files; the index needs only their footers."""

    def scan(self, path: str, size_bytes: int, config: DataConfig) -> ShardScan:
        rows, names = _footer_facts(path, size_bytes, config)
        number = np.arange(len(rows))
        return ShardScan(np.stack([number, number + 1, np.array(rows, np.int64)], axis=1), class_names=names)

    def read(self, index: Index, group: int, part: slice = slice(None)) -> Rows:
        if part != slice(None):
            return self.read(index, group).at(np.arange(index.group_rows[group])[part])
        file, number, _ = index.group_place(group)
        path = index.file_path(file)
        sample_id = index.sample_ids(group)
        place = index.rows_in_file(group)
        key = [f"{path}#{row}" for row in place]
        try:
            encoded, label = storage.retried(path, lambda: _read_group(path, number, index.config, index.stamp(file)))
        except _DamagedError as error:
            reason = f"the row group cannot be read: {error}"
            encoded, label = [reason] * len(sample_id), np.full(len(sample_id), NO_LABEL, np.int64)
        if len(encoded) != len(sample_id):
            raise UsageError(
                f"{path} has changed since the index was built: row group {number} has {len(encoded)} rows, not {len(sample_id)}"
            )
        rows = [
            image if isinstance(image, bytes) else BadRow(path, int(row), int(id_), image)
            for image, row, id_ in zip(encoded, place, sample_id, strict=True)
        ]
        return Rows(sample_id, rows, label, key, [path] * len(rows), place)

    def labels(self, index: Index) -> np.ndarray:
        column = index.config.label_column
        if column is None:
            return np.full(index.num_rows, NO_LABEL, np.int64)
        parts: list[np.ndarray] = []
        for file in range(index.num_files):
            path = index.file_path(file)
            try:
                parts.append(storage.retried(path, partial(_labels_of_file, path, column, index.stamp(file))))
            except _DamagedError:
                parts += storage.retried(path, partial(_labels_of_groups, path, column, index.stamp(file)))
        return np.concatenate(parts)

    def names(self, index: Index) -> list[str] | None:
        names: list[str] = []
        for file in range(index.num_files):
            with _open(index.file_path(file), index.stamp(file)) as opened:
                if _NAME_COLUMN not in opened.schema_arrow.names:
                    return None
                names += [str(name) for name in opened.read(columns=[_NAME_COLUMN], use_threads=False)[_NAME_COLUMN].to_pylist()]
        return names


def labels_of_groups(index: Index, groups: Sequence[int]) -> list[np.ndarray]:
    """(n,) int64 of each of the row groups: the labels of its rows, without reading images; -1 where there are none or they are damaged."""
    column = index.config.label_column
    assert column is not None, "an index of unlabeled data"
    numbers: dict[int, list[int]] = {}
    for group in groups:
        file, number, _ = index.group_place(group)
        numbers.setdefault(file, []).append(number)

    def of_file(file: int) -> dict[tuple[int, int], np.ndarray]:
        path = index.file_path(file)
        of_groups = storage.retried(path, partial(_labels_of_groups, path, column, index.stamp(file), numbers[file]))
        return {(file, number): labels for number, labels in zip(numbers[file], of_groups, strict=True)}

    with ThreadPoolExecutor(_THREADS) as pool:
        found = {place: labels for of_groups in pool.map(of_file, numbers) for place, labels in of_groups.items()}
    return [found[index.group_place(group)[:2]] for group in groups]


def class_names_metadata(names: Sequence[str]) -> dict[str, str]:
    """Metadata for a Parquet file's schema with the names of its classes, by label."""
    return {_NAMES_KEY: json.dumps(list(names))} if names else {}


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """The class names in a file's metadata: as `data convert` writes them, or as the library `datasets` describes a `ClassLabel`."""
    metadata = schema.metadata or {}
    try:
        if own := metadata.get(_NAMES_KEY.encode()):
            names = parse_json(own, "the names")
        else:
            tree = parse_json(metadata.get(b"huggingface", b"{}"), "the features")
            names = tree["info"]["features"][column]["names"]
    except (UsageError, LookupError, TypeError):
        return ()
    is_right = isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return tuple(names) if is_right else ()


def _footer_facts(path: str, size_bytes: int, config: DataConfig) -> tuple[list[int], tuple[str, ...]]:
    """Check the file's columns against the config; returns the rows of each row group, and the class names."""
    try:
        schema, metadata = storage.retried(path, lambda: _footer(path, size_bytes))
    except _DamagedError as error:
        raise UsageError(f"{path} cannot be read as Parquet: {error}") from error
    _check_column(path, schema, config.image_column, "image")
    if config.label_column is not None:
        _check_column(path, schema, config.label_column, "label")
    rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return rows, _class_names(schema, config.label_column) if config.label_column is not None else ()


class _DamagedError(Exception):
    """The file itself is damaged, unlike an error of the disk or the network."""


@contextmanager
def _damage_told_apart(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and storage.is_of_transport(path, error):
            raise
        raise _DamagedError(str(error)) from error


def _footer(path: str, size_bytes: int) -> tuple[pa.Schema, pq.FileMetaData]:
    with _damage_told_apart(path), _open(path, Stamp(size_bytes, 0)) as file:
        return file.schema_arrow, file.metadata


def _check_column(path: str, schema: pa.Schema, name: str, role: str) -> None:
    known = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if name not in schema.names:
        hint = "; data.label_column=null reads the data set as unlabeled" if role == "label" else ""
        raise UsageError(f"{path} has no {role} column {name!r}{did_you_mean(name, schema.names)}. Its columns: {known}{hint}.")
    if (count := schema.names.count(name)) > 1:
        raise UsageError(f"{path} has {count} columns called {name!r}; rename all but one. Its columns: {known}.")
    kind = schema.field(name).type
    if role == "image" and not _is_binary(kind) and not (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
        raise UsageError(f"column {name!r} of {path} has type {kind}, not encoded images (binary). Its columns: {known}.")
    if role == "label" and not pa.types.is_integer(kind):
        raise UsageError(f"column {name!r} of {path} has type {kind}, not whole-number labels. Its columns: {known}.")


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _read_group(path: str, number: int, config: DataConfig, stamp: Stamp) -> tuple[list[bytes | str], np.ndarray]:
    """The image of each row, or why there is none, and the labels (n,) int64, `NO_LABEL` where there is none.

    Besides the images themselves a few megabytes are in memory: the group is read in record batches, a page at a time.
    """
    columns = [config.image_column] if config.label_column is None else [config.image_column, config.label_column]
    encoded: list[bytes | str] = []
    labels: list[np.ndarray] = [np.empty(0, np.int64)]
    with _damage_told_apart(path), _open_group(path, stamp, number, columns) as file:
        if number >= file.metadata.num_row_groups:
            raise UsageError(f"{path} has changed since the index was built: it has no row group {number}")
        if missing := [name for name in columns if name not in file.schema_arrow.names]:
            raise UsageError(f"{path} is not the file that the index describes: it has no column {', '.join(missing)}")
        facts = file.metadata.row_group(number)
        rows = min(max(1, facts.num_rows * _BATCH_BYTES // max(facts.total_byte_size, 1)), max(facts.num_rows, 1))
        for batch in file.iter_batches(rows, row_groups=[number], columns=columns, use_threads=False):
            images, label = _images_and_labels(batch, config)
            encoded += images
            labels.append(label)
            del batch
            pa.default_memory_pool().release_unused()  # the allocator would keep large pages for a while
    return encoded, np.concatenate(labels)


def _images_and_labels(batch: pa.RecordBatch, config: DataConfig) -> tuple[list[bytes | str], np.ndarray]:
    table = pa.Table.from_batches([batch])
    image = table[config.image_column]
    named: list[str | None] = [None] * table.num_rows
    if pa.types.is_struct(image.type):
        if image.type.get_field_index("path") >= 0:
            named = pc.struct_field(image, "path").cast(pa.string()).to_pylist()  # pyright: ignore[reportAttributeAccessIssue]
        image = pc.struct_field(image, "bytes")  # pyright: ignore[reportAttributeAccessIssue]
    images = [content or _why_empty(name) for content, name in zip(image.to_pylist(), named, strict=True)]
    if config.label_column is None:
        return images, np.full(len(images), NO_LABEL, np.int64)
    return images, _whole_numbers(table[config.label_column]).to_numpy()


def _why_empty(named: str | None) -> str:
    if named is None:
        return "the image is empty"
    return f"the row has a path ({named!r}) and no bytes: write the images themselves into the column"


def _labels_of_file(path: str, name: str, stamp: Stamp) -> np.ndarray:
    with _damage_told_apart(path), _open(path, stamp) as file:
        return _whole_numbers(file.read(columns=[name], use_threads=False)[name]).to_numpy()


def _labels_of_groups(path: str, name: str, stamp: Stamp, numbers: Sequence[int] | None = None) -> list[np.ndarray]:
    """The labels of these row groups, or of all; of a damaged one, whose rows are bad where they are read, -1."""

    def of_group(file: pq.ParquetFile, number: int) -> np.ndarray:
        try:
            with _damage_told_apart(path):
                return _whole_numbers(file.read_row_group(number, columns=[name], use_threads=False)[name]).to_numpy()
        except _DamagedError:
            return np.full(file.metadata.row_group(number).num_rows, NO_LABEL, np.int64)

    with _open(path, stamp) as file:
        return [of_group(file, number) for number in (range(file.num_row_groups) if numbers is None else numbers)]


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.fill_null(column.cast(pa.int64()), NO_LABEL)


def _open(path: str, stamp: Stamp) -> pq.ParquetFile:
    if storage.object_of(path) is not None:
        return open_remote(path, stamp)
    filesystem, inner = storage.filesystem_of(path)
    is_local = isinstance(filesystem, pafs.LocalFileSystem)
    return pq.ParquetFile(inner, filesystem=filesystem, buffer_size=_BUFFER_BYTES if is_local else 0, pre_buffer=not is_local)


def _open_group(path: str, stamp: Stamp, number: int, columns: Sequence[str]) -> pq.ParquetFile:
    """The file, of which the columns of one row group are read."""
    if storage.object_of(path) is not None:
        return open_remote_group(path, stamp, number, columns)
    return _open(path, stamp)
