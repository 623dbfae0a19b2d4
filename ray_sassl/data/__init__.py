"""Image shards: their rows (`index`), the order in which an epoch visits them (`plan`), and their pixels (`decode`).

One file per format: `parquet.py`, `webdataset.py`, `folder.py` implement `Reader`. Nothing in this package imports torch or Ray, so
that the workers that read and decode stay light.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from ray_sassl.data.hub import HUB
from ray_sassl.data.left_out import LeftOut
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage
from ray_sassl.files.paths import LocalPath
from ray_sassl.files.storage import Entry
from ray_sassl.plugins import OPERATIONAL, FrozenConfig

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
"""Extensions of files that are read as images, in lower case; the first bytes of a file decide its format."""

OTHER_IMAGES = ("avif", "bmp", "gif", "heic", "heif", "jfif", "jp2", "jpe", "jxl", "tif", "tiff")
"""Extensions of images that are not read."""

GROUP_ROWS = 256
"""Rows per group of a format without row groups: so many samples are read at once."""

NO_LABEL = -1

_NAMES_AT_ONCE = 2**16
_FIRST_WITH_BUFFERS = 5
"""The first of pickle's protocols that leaves buffers where they are."""

SYNTHETIC = ("synthetic", "synthetic:train", "synthetic:test")
"""The embedded data set, as `data.path` may name it instead of a path."""

Format = Literal["parquet", "webdataset", "folder"]


class DataConfig(FrozenConfig):
    """Where the images are, and in which portions they are shuffled and processed."""

    path: Annotated[str | tuple[str, ...], LocalPath(other_than=SYNTHETIC, prefixes=(HUB,))] = "synthetic"
    """A file, a folder, a glob (`*`, `?`, `[...]`, `**`, `{000..146}`) or a list of these; local or a pyarrow filesystem URI (`s3://`,
    `gs://`). `hf:OWNER/NAME[@REVISION][:SPLIT[:SUBSET]]` is a data set of the Hugging Face hub. `synthetic` is the train split of the
    embedded data set, `synthetic:test` its test split."""
    format: Literal["auto", "parquet", "webdataset", "folder"] = "auto"
    """`auto` recognizes the format by the file names, and refuses a folder with several formats."""
    image_column: str = "image"
    """Parquet: the column of encoded images, binary or a struct with a field `bytes`. It has no effect on the other formats."""
    label_column: str | None = "label"
    """Parquet: the column of whole-number labels. None: the data set is read as unlabeled, in every format."""
    label_extension: str = "cls"
    """WebDataset: extension of the member with the label as decimal text. It has no effect on the other formats."""
    shuffle_gb: float | None = Field(default=None, gt=0)
    """Encoded images that are shuffled together, in GB (10^9 bytes). Pieces of tars and folders (8 ImageNet images), or whole row groups of
    Parquet files, are shuffled over the whole data set first. None: as many as mix batches of 256 as a uniform shuffle does in any order of
    the data, which is 0.26 GB for tars and folders, and 192 row groups of Parquet files (5.4 GB of ImageNet in groups of 256), and at most
    a quarter of the memory of the machine that starts the run. `ray-sassl data mixing` says how well batches are mixed."""
    shuffle_window: int | None = Field(default=None, ge=1)
    """Instead of `shuffle_gb`: rows that are shuffled together, in whole row groups. Runs from before there was `shuffle_gb` have it and
    keep their order."""
    block_rows: int = Field(default=256, ge=1)
    """Rows per block: the unit of work that passes from stage to stage, and the rows from which in-batch style partners are drawn."""
    max_pixels: int = Field(default=100_000_000, ge=1)
    """A larger image is refused before it is decoded. The default is about Pillow's own limit for warnings (89 million), 300 MB of RGB."""
    max_bad_fraction: Annotated[float, OPERATIONAL] = Field(default=0.01, ge=0, le=1)
    """A run stops if more than this share of the data set's rows cannot be read or decoded."""
    strict: Annotated[bool, OPERATIONAL] = False
    """Refuse a data set if anything of it is left out (links to nothing, images of other kinds or endings, names that cannot be read,
    merged or dropped members of shards), instead of a warning."""
    cache_gb: Annotated[float, OPERATIONAL] = Field(default=0, ge=0)
    """Each node keeps up to so many GB (10^9 bytes) of an object store's images, still encoded, in its cache folder (`RAY_SASSL_CACHE`), so
    that later epochs and the other trials of a search read them from its own disk. Images that have no room are read from the store each
    time."""

    @field_validator("path")
    @classmethod
    def _path_is_given(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not path or (isinstance(path, tuple) and not all(path)):
            raise ValueError("the data path is empty; give a file, a folder, a glob, a list of these, or 'synthetic'")
        return path

    @model_validator(mode="after")
    def _one_size_is_given(self) -> DataConfig:
        if self.shuffle_gb is not None and self.shuffle_window is not None:
            raise ValueError("shuffle_gb and shuffle_window both say how much is shuffled together; leave out shuffle_window")
        return self

    @property
    def paths(self) -> tuple[str, ...]:
        """The path as a tuple, also if a single one was given."""
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass(frozen=True)
class Rows:
    """Encoded images of a data set.

    Attributes:
        sample_id: (n,) int64, the row's number in the index.
        encoded: n times the file's bytes, or a `BadRow` if they could not be read.
        label: (n,) int64, `NO_LABEL` (-1) if there is none.
        key: n times the row's source for people, `file#row` or `shard#sample` or a file.
        path: n times the path of the row's file.
        row: (n,) int64, the row's number within that file.
    """

    sample_id: np.ndarray
    encoded: list[bytes | BadRow]
    label: np.ndarray
    key: list[str]
    path: list[str]
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.encoded)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The images as buffers, which Ray copies to its object store from where they are, and not into a pickle first."""
        if protocol < _FIRST_WITH_BUFFERS:
            return super().__reduce_ex__(protocol)
        encoded = [pickle.PickleBuffer(image) if isinstance(image, bytes) else image for image in self.encoded]
        return _rows, (self.sample_id, encoded, self.label, self.key, self.path, self.row)

    def take(self, sample_id: np.ndarray) -> Rows:
        """The rows with these ids, in this order.

        Raises:
            KeyError: an id is not among the rows.
        """
        order = np.argsort(self.sample_id, kind="stable")
        place = np.minimum(np.searchsorted(self.sample_id, sample_id, sorter=order), len(self) - 1)
        chosen = order[place]
        if len(missing := np.setdiff1d(sample_id, self.sample_id[chosen])):
            raise KeyError(f"sample {missing[0]} is not among these {len(self)} rows")
        return self.at(chosen)

    def at(self, places: np.ndarray) -> Rows:
        """The rows at these places, in this order."""
        return Rows(
            sample_id=self.sample_id[places],
            encoded=[self.encoded[i] for i in places],
            label=self.label[places],
            key=[self.key[i] for i in places],
            path=[self.path[i] for i in places],
            row=self.row[places],
        )

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other."""
        return cls(
            sample_id=np.concatenate([part.sample_id for part in parts]) if parts else np.empty(0, np.int64),
            encoded=[encoded for part in parts for encoded in part.encoded],
            label=np.concatenate([part.label for part in parts]) if parts else np.empty(0, np.int64),
            key=[key for part in parts for key in part.key],
            path=[path for part in parts for path in part.path],
            row=np.concatenate([part.row for part in parts]) if parts else np.empty(0, np.int64),
        )

    def bad_row(self, place: int, reason: str) -> BadRow:
        """The row at this place, for the quarantine."""
        return BadRow(self.path[place], int(self.row[place]), int(self.sample_id[place]), reason)


def _rows(sample_id: np.ndarray, encoded: Sequence[Any], *columns: Any) -> Rows:
    """The inverse of `Rows.__reduce_ex__`."""
    return Rows(sample_id, [image if isinstance(image, BadRow) else bytes(image) for image in encoded], *columns)


@dataclass(frozen=True)
class SourceFile:
    """A file of the data set.

    Attributes:
        entry: Its path, size and time of change.
        folder: The part of the path that the user gave; the rest may name a class.
        relative: The path below the folder that the user gave, `/` between its components.
    """

    entry: Entry
    folder: str
    relative: str


@dataclass(frozen=True)
class SourceFiles:
    """Files of a data set, as columns, which take little more memory than the names.

    Attributes:
        folders: The parts of the paths that the user gave, for `folder`.
        folder: (n,) int32, the number of each file's folder.
        name: (n,) large strings, the path below that folder.
        size_bytes, mtime_ns: (n,) int64.
        etag: (n,) large strings, of S3 stores; empty where it is not known.
    """

    folders: tuple[str, ...]
    folder: np.ndarray
    name: pa.LargeStringArray
    size_bytes: np.ndarray
    mtime_ns: np.ndarray
    etag: pa.LargeStringArray | None = None

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, place: int) -> SourceFile:
        if not 0 <= place < len(self):
            raise IndexError(place)
        folder, name = self.folders[self.folder[place]], self.name[place].as_py()
        entry = Entry(storage.join(folder, name), True, int(self.size_bytes[place]), int(self.mtime_ns[place]))
        return SourceFile(entry, folder, name)

    def __iter__(self) -> Iterator[SourceFile]:
        return (self[place] for place in range(len(self)))

    def at(self, places: np.ndarray) -> SourceFiles:
        """The files at these places, in this order."""
        taken = pa.array(places, pa.int64())
        etag = None if self.etag is None else self.etag.take(taken)
        return SourceFiles(self.folders, self.folder[places], self.name.take(taken), self.size_bytes[places], self.mtime_ns[places], etag)

    def names(self) -> Iterator[str]:
        """The names, one after the other; a few of them are in memory at a time."""
        for first in range(0, len(self), _NAMES_AT_ONCE):
            yield from self.name.slice(first, _NAMES_AT_ONCE).to_pylist()

    def paths(self) -> Iterator[str]:
        """The whole paths, one after the other."""
        around = [_around(folder) for folder in self.folders]
        for folder, name in zip(self.folder.tolist(), self.names(), strict=True):
            before, after = around[folder]
            is_odd = "?" in name and storage.is_uri(before)  # a `?` in the name of a URI's file does not begin its options
            yield storage.join(self.folders[folder], name) if is_odd else f"{before}{name}{after}"


def _around(folder: str) -> tuple[str, str]:
    """What stands before and after the names of the folder's files in their paths."""
    path = storage.join(folder, "x")
    before = storage.without_options(path)
    return before[:-1], path.removeprefix(before)


GROUP_SCHEMA = pa.schema([("file", pa.int32()), ("start", pa.int64()), ("stop", pa.int64()), ("num_rows", pa.int64())])
"""A row group: `start` and `stop` are a row group's number and the next (Parquet), the byte range in a shard (WebDataset), or the numbers
of the files (folder)."""
ROW_COLUMNS: dict[str, dict[str, pa.DataType]] = {
    "parquet": {},
    "webdataset": {"key": pa.string(), "offset": pa.int64(), "size": pa.int64(), "label": pa.int64()},
    "folder": {"label": pa.int64()},
}
"""What the readers need to know of each sample, by format."""


@dataclass(frozen=True)
class ShardScan:
    """What a reader found in a shard.

    Attributes:
        groups: (n, 3) int64, `start`, `stop` and `num_rows` of each row group, see `GROUP_SCHEMA`.
        rows: One row per sample with what the reader needs to find it, or None if the file itself has that (Parquet).
        class_names: The name of each label, if the shard names them.
        problem: Damage to the whole shard; damage to single rows is found when they are read.
        ignored: How many members are not used, by file name extension.
        lost: Members that are images and left out, or that were merged with members elsewhere in the shard.
    """

    groups: np.ndarray
    rows: pa.Table | None = None
    class_names: tuple[str, ...] = ()
    problem: str | None = None
    ignored: dict[str, int] = field(default_factory=dict)
    lost: LeftOut = field(default_factory=LeftOut)


class Reader(ABC):
    """One format: where its rows are, and their bytes."""

    @abstractmethod
    def read(self, index: Index, group: int, part: slice = slice(None)) -> Rows:
        """The rows of one row group or of a part of it, with a `BadRow` in the place of a row that cannot be read.

        Args:
            part: The places of the rows within the group; of a format with row groups of its own, the whole group is read for any part.
        """

    @abstractmethod
    def labels(self, index: Index) -> np.ndarray:
        """(num_rows,) int64: the label of every row, `NO_LABEL` if there is none, without reading images."""

    @abstractmethod
    def names(self, index: Index) -> list[str] | None:
        """The name of every row, without reading images: the file's name, the sample's name in its shard, or column `key`. None if rows
        have no names."""


class ShardReader(Reader):
    """A format whose files have many rows each."""

    @abstractmethod
    def scan(self, path: str, size_bytes: int, config: DataConfig) -> ShardScan:
        """The row groups of a shard, without reading image bytes.

        Raises:
            UsageError: the file is not of this format, lacks a column, or has content that is refused.
        """
