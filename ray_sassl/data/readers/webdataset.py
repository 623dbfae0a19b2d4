"""WebDataset shards: tar files in which members with the same base name are a sample.

The index needs only the 512-byte headers and the short label members. A row group is a run of samples that is fetched by one range read. A
sample's name ends at the first dot of its file name. If no image has that name, as with dates and numbers in `2024-05-01.cam1.00001.jpg`,
it ends at the last dot instead.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from ray_sassl.data import (
    GROUP_ROWS,
    IMAGE_EXTENSIONS,
    NO_LABEL,
    OTHER_IMAGES,
    ROW_COLUMNS,
    DataConfig,
    Rows,
    ShardReader,
    ShardScan,
)
from ray_sassl.data.left_out import LeftOut
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.tar import CutOffError, Member, WindowedFile, members
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_LOCAL_WINDOW, _REMOTE_WINDOW = 4096, 4 * 2**20
_MAX_LABEL_BYTES = 64
_ROW_SCHEMA = pa.schema(list(ROW_COLUMNS["webdataset"].items()))
_OF_WINDOWS = ("thumbs.db", "desktop.ini")
_MERGED = "members away from the rest of their sample (merged)"
_SECOND_IMAGE = "further images of a sample"


@dataclass
class _Sample:
    """A sample while its members are collected; `offset` is -1 until its image is found, and `place` is that of its first member."""

    key: str
    place: int
    offset: int = -1
    size: int = 0
    label: int = NO_LABEL
    extensions: set[str] = field(default_factory=set)


class WebDatasetReader(ShardReader):
    """Reads shards; runs of up to `GROUP_ROWS` samples take the place of row groups. The complete samples of a cut-off shard are used."""

    def scan(self, path: str, size_bytes: int, config: DataConfig) -> ShardScan:
        return storage.retried(path, lambda: _scan_shard(path, size_bytes, config))

    def read(self, index: Index, group: int, part: slice = slice(None)) -> Rows:
        file, start, stop = index.group_place(group)
        path = index.file_path(file)
        sample_id = index.sample_ids(group)[part]
        rows = index.rows_of(group, part)
        key, offset, size = rows["key"].to_pylist(), rows["offset"].to_pylist(), rows["size"].to_pylist()
        spans = [
            (first, min(first + length, stop)) if start <= first <= stop else (0, 0) for first, length in zip(offset, size, strict=True)
        ]
        place = index.rows_in_file(group)[part]
        encoded: list[bytes | BadRow] = []
        for i, image in enumerate(storage.read_spans(path, spans, index.stamp(file))):
            reason = _what_is_wrong(offset[i], size[i], len(image))
            encoded.append(BadRow(path, int(place[i]), int(sample_id[i]), f"{reason} (sample {key[i]})") if reason else image)
        return Rows(sample_id, encoded, rows["label"].to_numpy(), [f"{path}#{name}" for name in key], [path] * len(key), place)

    def labels(self, index: Index) -> np.ndarray:
        return index.row_column("label").to_numpy()

    def names(self, index: Index) -> list[str]:
        return index.row_column("key").to_pylist()


def _what_is_wrong(offset: int, size: int, num_read: int) -> str | None:
    if offset < 0:
        return "the sample has no image member"
    if size == 0:
        return "the image is empty"
    return "the shard is cut off within this image" if num_read < size else None


def _scan_shard(path: str, size_bytes: int, config: DataConfig) -> ShardScan:
    """The shard's samples; `problem` is where the shard is damaged, and everything after that place is lost."""
    found: list[tuple[Member, bytes]] = []
    ignored: Counter[str] = Counter()
    lost = LeftOut()
    problem = None
    with storage.open_spans(path) as read:
        source = WindowedFile(read, size_bytes, _REMOTE_WINDOW if storage.local_path(path) is None else _LOCAL_WINDOW)
        try:
            for member in members(source, path):
                if what := _no_part_of_a_sample(member.name):
                    ignored[what] += 1
                    continue
                may_be_label = config.label_column is not None and member.name.lower().endswith(f".{config.label_extension}")
                found.append((member, source.read(member.offset, min(member.size, _MAX_LABEL_BYTES + 1)) if may_be_label else b""))
        except CutOffError as cut:
            problem = str(cut)
    samples = sorted(_samples(found, path, config, ignored, lost), key=lambda sample: sample.place if sample.offset < 0 else sample.offset)
    _refuse_lossy(path, samples, lost, config)
    runs = [samples[first : first + GROUP_ROWS] for first in range(0, len(samples), GROUP_ROWS)]
    columns = [[sample.key for sample in samples], *([getattr(sample, name) for sample in samples] for name in _ROW_SCHEMA.names[1:])]
    groups = np.array([(*_range(run, size_bytes), len(run)) for run in runs], np.int64).reshape(-1, 3)
    return ShardScan(groups, pa.table(columns, schema=_ROW_SCHEMA), problem=problem, ignored=dict(ignored), lost=lost)


def _refuse_lossy(path: str, samples: Sequence[_Sample], lost: LeftOut, config: DataConfig) -> None:
    """Check that not too many images of the shard lack their own sample.

    Raises:
        UsageError: more than `max_bad_fraction` of them do.
    """
    num_lost = lost.counts[_SECOND_IMAGE]
    num_images = num_lost + sum(sample.offset >= 0 for sample in samples)
    if num_lost > config.max_bad_fraction * num_images:
        raise UsageError(
            f"{path}: {num_lost:,} of {num_images:,} images would be lost, because another image has their name up to the ending "
            f"({', '.join(lost.names[_SECOND_IMAGE])}). Give each image its own name, or allow the loss with a higher "
            f"data.max_bad_fraction (now {config.max_bad_fraction:g})."
        )


def _no_part_of_a_sample(name: str) -> str | None:
    """The kind of a member that other programs leave in tar files, or None if it is part of a sample."""
    folder, base = posixpath.split(name)
    if base.startswith("._") or "__MACOSX" in folder.split("/"):
        return "AppleDouble (._*)"
    if base.lower() in _OF_WINDOWS:
        return base.lower()
    return "hidden" if base.startswith(".") else None


def _range(run: Sequence[_Sample], size_bytes: int) -> tuple[int, int]:
    """First byte and end of the images of a run of samples."""
    images = [(sample.offset, min(sample.offset + sample.size, size_bytes)) for sample in run if sample.offset >= 0]
    return (min(start for start, _ in images), max(stop for _, stop in images)) if images else (0, 0)


def _samples(found: Sequence[tuple[Member, bytes]], path: str, config: DataConfig, ignored: Counter[str], lost: LeftOut) -> list[_Sample]:
    """The samples of the members, in the order of their first members."""
    split = [_split_name(member.name) for member, _ in found]
    plain = {key for key, extension in split if extension in IMAGE_EXTENSIONS}
    samples: list[_Sample] = []
    newest: dict[str, _Sample] = {}
    for (member, text), (key, extension) in zip(found, split, strict=True):
        if key not in plain and "." in extension:
            start, _, extension = extension.rpartition(".")
            key = f"{key}.{start}"
        sample = newest.get(key)
        if sample is None or extension in sample.extensions:
            sample = newest[key] = _Sample(key, member.offset)
            samples.append(sample)
        elif sample is not samples[-1]:
            ignored[_MERGED] += 1
            lost.add(_MERGED, [member.name])
        _add_member(sample, extension, member, text, path, config, ignored, lost)
    _hand_labels_down(samples, newest)
    return [sample for sample in samples if sample.extensions]


def _hand_labels_down(samples: Iterable[_Sample], newest: dict[str, _Sample]) -> None:
    """Give the label of `x.cls` to `x.left.jpg` and `x.right.jpg`, which have no label themselves, and drop the sample `x`, which has no
    image."""
    for sample in samples:
        parent = newest.get(_split_name(sample.key)[0])
        if sample.offset >= 0 and sample.label == NO_LABEL and parent is not None and parent is not sample and parent.offset < 0:
            sample.label = parent.label
            parent.extensions.clear()


def _add_member(
    sample: _Sample, extension: str, member: Member, text: bytes, path: str, config: DataConfig, ignored: Counter[str], lost: LeftOut
) -> None:
    sample.extensions.add(extension)
    if extension in IMAGE_EXTENSIONS:
        if sample.offset < 0:
            sample.offset, sample.size = member.offset, member.size
        else:
            ignored[_SECOND_IMAGE] += 1
            lost.add(_SECOND_IMAGE, [member.name])
    elif extension == config.label_extension and config.label_column is not None:
        sample.label = _parse_label(text, member, path, config)
    else:
        ignored[extension or "no extension"] += 1
        if extension.rpartition(".")[2] in (*IMAGE_EXTENSIONS, *OTHER_IMAGES):
            lost.add(f".{extension}", [member.name])


def _parse_label(text: bytes, member: Member, path: str, config: DataConfig) -> int:
    if len(text) < min(member.size, _MAX_LABEL_BYTES):
        return NO_LABEL  # the shard is cut off here, which is reported for the shard
    if re.fullmatch(rb"\s*-?\d{1,18}\s*", text):
        return int(text)
    raise UsageError(
        f"{path}: member {member.name!r} should have a label as decimal text but has {text[:40]!r}; data.label_extension="
        f"{config.label_extension!r} names the label members, and data.label_column=null reads the data set as unlabeled"
    )


def _split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last component, and the extension is all that follows."""
    folder, base = posixpath.split(name)
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), extension.lower()
