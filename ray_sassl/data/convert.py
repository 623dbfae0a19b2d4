"""The pure part of converting a data set: which rows go to which shard, and how a shard is written.

The images' bytes are copied unchanged, unless the caller changes them. A shard's name and content depend only on the source and the
settings, and it is written completely or not at all, so a conversion that was stopped can be continued. In a folder of images, where every
image is a file, a hidden marker file is written after the last file of a shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_sassl.data import NO_LABEL, DataConfig, Rows
from ray_sassl.data.decode import DecodeError, image_format
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.readers.parquet import class_names_metadata
from ray_sassl.data.reading import all_labels, read_groups
from ray_sassl.data.sources import path_around
from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json
from ray_sassl.process.errors import UsageError

ShardFormat = Literal["parquet", "webdataset", "folder"]

Change = Callable[[Rows], tuple[Rows, list[BadRow]]]
"""Makes the rows to write from the source's rows, and returns the rows that it cannot use as bad rows."""

MANIFEST = "conversion.json"
_SMALL_GROUP_BYTES = 2e6
_SHARD_NAME: dict[ShardFormat, str] = {"parquet": "shard-{:06d}.parquet", "webdataset": "shard-{:06d}.tar", "folder": ".shard-{:06d}.done"}
_MEMBER_EXTENSION = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Conversion:
    """The settings of a conversion, which are in `conversion.json` of the target folder.

    Attributes:
        source_fingerprint: Fingerprint of the source's index.
        format: Format to write.
        num_rows: Rows of the source.
        shard_rows: Rows per shard; the last one has the rest.
        group_rows: Rows per Parquet row group, the smallest portion that is read at a time.
        has_labels: Whether labels are written; rows without one then get -1.
        change: How the images are changed, in words or settings that determine the new images; None if they are copied.
        shuffle: The seed of the order of the rows; None if they keep that of the source.
    """

    source_fingerprint: str
    format: ShardFormat
    num_rows: int
    shard_rows: int
    group_rows: int
    has_labels: bool
    change: str | dict[str, Any] | None = None
    shuffle: int | None = None

    @property
    def num_shards(self) -> int:
        return -(-self.num_rows // self.shard_rows)

    def shard_name(self, shard: int) -> str:
        """The name of the shard's file, or of the marker that all its files exist."""
        return _SHARD_NAME[self.format].format(shard)

    def bad_rows_name(self, shard: int) -> str:
        """The name of the list of rows that are missing in the shard."""
        return f"shard-{shard:06d}.bad.jsonl"


def plan_conversion(
    index: Index,
    format_: ShardFormat,
    shard_rows: int,
    group_rows: int | None = None,
    change: str | dict[str, Any] | None = None,
    shuffle: int | None = None,
) -> Conversion:
    """The conversion of the whole data set; the arguments are the attributes of `Conversion`.

    Args:
        group_rows: By default 256, and 2 MB but at least 16 rows if the rows are shuffled.

    Raises:
        UsageError: a size is not positive, or files of a folder should be shuffled.
    """
    if shuffle is not None and format_ == "folder":
        raise UsageError("--shuffle is for shards; the files of a folder have no order, and a run shuffles them anyway")
    if group_rows is None:
        group_rows = 256
        if shuffle is not None:
            group_rows = min(256, max(16, int(_SMALL_GROUP_BYTES * index.num_rows / max(index.num_bytes, 1))))
    if shard_rows < 1 or group_rows < 1:
        raise UsageError(f"shards of {shard_rows} rows in row groups of {group_rows} cannot be written; both must be at least 1")
    has_labels = bool((all_labels(index) != NO_LABEL).any())
    return Conversion(index.fingerprint, format_, index.num_rows, shard_rows, group_rows, has_labels, change, shuffle)


def check_target(target: str, source: DataConfig) -> None:
    """Check that the target is outside the source.

    Raises:
        UsageError: the target is a folder of the source, or is inside one.
    """
    if path := path_around(source, target):
        raise UsageError(f"{target} is inside its source {path}: the copy would become part of the data. Choose a folder elsewhere.")


def open_target(target: str, conversion: Conversion) -> list[int]:
    """Prepare the target folder, and return the numbers of the shards that are still to be written.

    Raises:
        UsageError: the folder has other content, or a part of another conversion.
    """
    there = {storage.name_of(entry.path) for entry in storage.list_dir(target)}
    manifest = storage.join(target, MANIFEST)
    if MANIFEST in there:
        then, now = _flat(read_json(manifest) or {}), _flat(asdict(conversion))
        names = [*now, *(name for name in then if name not in now)]
        changed = [f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in names if then.get(name) != now.get(name)]
        if changed:
            raise UsageError(f"{target} has a part of another conversion: {'; '.join(changed)}. Choose another folder.")
    elif any(not name.startswith(".") for name in there):
        raise UsageError(f"{target} is not empty and has no {MANIFEST}, so no conversion can be continued there; choose another folder")
    else:
        storage.write_text(manifest, json.dumps(asdict(conversion), indent=2) + "\n")
    return [shard for shard in range(conversion.num_shards) if conversion.shard_name(shard) not in there]


def convert_shard(index: Index, conversion: Conversion, target: str, shard: int, change: Change | None = None) -> list[BadRow]:
    """Write one shard into the target folder; returns the rows that could not be used, which are also listed in a file next to it.

    Args:
        change: Changes the images; by default, they are copied.
    """
    first = shard * conversion.shard_rows
    stop = min(first + conversion.shard_rows, conversion.num_rows)
    groups = np.flatnonzero((index.group_first < stop) & (index.group_first + index.group_rows > first))
    rows = read_groups(index, groups.tolist()).take(np.arange(first, stop))
    good, bad = (change or split_rows)(rows)
    if bad:
        write_bad_rows(storage.join(target, conversion.bad_rows_name(shard)), bad, index.num_rows)
    path = storage.join(target, conversion.shard_name(shard))
    match conversion.format:
        case "parquet":
            write_parquet(path, good, conversion, index.class_names)
        case "webdataset":
            write_webdataset(path, good, conversion)
        case "folder":
            write_files(target, good, file_names(index, good, conversion))
            storage.write_text(path, "")
    return bad


def write_bad_rows(path: str, bad: Sequence[BadRow], num_rows: int) -> None:
    """List the rows, of a data set of `num_rows` rows."""
    quarantine = Quarantine(num_rows, max_bad_fraction=1.0)
    quarantine.add(bad)
    quarantine.save_jsonl(path)


def load_bad_rows(target: str) -> list[BadRow]:
    """The rows that a conversion could not copy, from the lists next to the shards."""
    quarantine = Quarantine(num_rows=1, max_bad_fraction=float("inf"))
    for entry in storage.list_dir(target):
        if storage.without_options(entry.path).endswith(".bad.jsonl"):
            quarantine.load_jsonl(entry.path)
    return quarantine.rows


def split_rows(rows: Rows) -> tuple[Rows, list[BadRow]]:
    """The rows whose first bytes are those of a JPEG, PNG or WebP file, and the others."""
    bad: list[BadRow] = []
    good: list[int] = []
    for place, encoded in enumerate(rows.encoded):
        if isinstance(encoded, BadRow):
            bad.append(encoded)
            continue
        try:
            image_format(encoded)
        except DecodeError as error:
            bad.append(rows.bad_row(place, str(error)))
        else:
            good.append(place)
    return rows.take(rows.sample_id[good]), bad


def write_parquet(path: str, rows: Rows, conversion: Conversion, class_names: Sequence[str] = ()) -> None:
    """Write columns `image` (binary), `label` (int64, if there are labels) and `key` (where the row came from), uncompressed, since images
    do not get smaller. The metadata of the schema has the names of the classes, by label."""
    names = class_names if conversion.has_labels else ()
    fields = [("image", pa.binary()), *([("label", pa.int64())] if conversion.has_labels else []), ("key", pa.string())]
    schema = pa.schema(fields).with_metadata(class_names_metadata(names))
    images = _bytes_of(rows)
    with storage.open_atomic(path) as file, pq.ParquetWriter(file, schema, compression="NONE", use_dictionary=False) as writer:
        for first in range(0, len(rows), conversion.group_rows):  # a table of all rows would be a second copy of them
            part = slice(first, first + conversion.group_rows)
            labels = [pa.array(rows.label[part], pa.int64())] if conversion.has_labels else []
            keys = pa.array([storage.name_of(key) for key in rows.key[part]], pa.string())
            writer.write_table(pa.Table.from_arrays([pa.array(images[part], pa.binary()), *labels, keys], schema=schema))


def write_webdataset(path: str, rows: Rows, conversion: Conversion) -> None:
    """Write members `<sample id>.jpg|png|webp` and, if there are labels, `<sample id>.cls`, without times or owners."""
    with storage.open_atomic(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample_id, label, encoded in zip(rows.sample_id, rows.label, _bytes_of(rows), strict=True):
            _add(tar, f"{sample_id:09d}.{_MEMBER_EXTENSION[image_format(encoded)]}", encoded)
            if conversion.has_labels:
                _add(tar, f"{sample_id:09d}.cls", str(int(label)).encode())


def file_names(index: Index, rows: Rows, conversion: Conversion) -> list[str]:
    """The images' paths below the target folder: as in the source if that is a folder, else `<label>/<sample id>.jpg|png|webp`."""
    if index.format != "folder":
        folders = [f"{label:06d}/" if conversion.has_labels else "" for label in rows.label]
        files = zip(folders, rows.sample_id, _bytes_of(rows), strict=True)
        return [f"{folder}{sample_id:09d}.{_MEMBER_EXTENSION[image_format(encoded)]}" for folder, sample_id, encoded in files]
    # The root of a data set of one class is that class's folder.
    above = f"{index.class_names[0]}/" if len(index.class_names) == 1 else ""
    return [above + storage.without_options(path).removeprefix(index.root) for path in rows.path]


def write_files(target: str, rows: Rows, names: Sequence[str]) -> None:
    """Write one file per image, in subfolders of the target."""
    for folder in sorted({storage.parent(storage.join(target, name)) for name in names}):
        storage.makedirs(folder)
    for name, encoded in zip(names, _bytes_of(rows), strict=True):
        storage.write_bytes(storage.join(target, name), encoded)


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings together with those of a change, so that each is compared separately."""
    change = settings.get("change")
    return {**settings, **change, "change": None} if isinstance(change, dict) else settings


def _bytes_of(rows: Rows) -> Sequence[bytes]:
    return [encoded for encoded in rows.encoded if isinstance(encoded, bytes)]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
