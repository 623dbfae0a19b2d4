"""Data sets from Python: inspect, check, measure and convert them, and get those of the transfer tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sassl.data import DataConfig
from ray_sassl.data.convert import ShardFormat, check_target
from ray_sassl.data.inspect import Summary, contact_sheet, inspect
from ray_sassl.data.mixing import Mixing, mixing_of
from ray_sassl.data.quarantine import Quarantine
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.targets.cards import CARDS, Card, card_of
from ray_sassl.evaluation.targets.prepare import Prepared, default_root, fetch, is_prepared, prepare
from ray_sassl.files.lock import hold_folder
from ray_sassl.files.paths import absolute, with_absolute_paths
from ray_sassl.process.errors import UsageError

if TYPE_CHECKING:
    from ray_sassl.orchestrate.batch.data import CheckResult, ConvertResult

DataSource = str | os.PathLike[str] | Sequence[str] | DataConfig
"""A file, folder, glob or URI, a list of these, or a whole `DataConfig`."""


def as_data(source: DataSource, **fields: object) -> DataConfig:
    """The data config of a source, with absolute paths.

    Args:
        source: What the caller gave.
        fields: Fields of the config for a source that is not a config.
    """
    if isinstance(source, DataConfig):
        return with_absolute_paths(source)
    path = tuple(source) if isinstance(source, Sequence) and not isinstance(source, str) else os.fspath(source)
    return with_absolute_paths(DataConfig(path=path, **fields))  # pyright: ignore[reportArgumentType]


def inspect_data(data: DataSource, *, sheet: str | None = None) -> Summary:
    """Counts, sizes and labels of a data set, from its index and a sample of its images.

    Args:
        data: The data set.
        sheet: Path or URI for a contact sheet (PNG), if one is wanted.

    Raises:
        UsageError: there are no readable data.
    """
    index = build_index(as_data(data))
    summary = inspect(index)
    if sheet is not None:
        contact_sheet(index, sheet)
    return summary


def check_data(
    data: DataSource,
    *,
    overlap: DataSource | None = None,
    out: str | None = None,
    address: str | None = None,
    show_progress: bool = True,
) -> CheckResult:
    """Decode every image of a data set, on Ray, and list those that cannot be used.

    Args:
        data: The data set.
        overlap: Another data set, such as the test images: which of its images are in this one too, by their bytes.
        out: Path or URI for the bad rows, one JSON object per line.
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw a progress bar.

    Raises:
        UsageError: there are no readable data.
    """
    from ray_sassl.orchestrate.batch.data import check
    from ray_sassl.orchestrate.runtime.session import ray_session

    with ray_session(address):
        other = as_data(overlap) if overlap is not None else None
        result = check(as_data(data), overlap=other, show_progress=show_progress)
    if out is not None:
        quarantine = Quarantine(result.num_rows, max_bad_fraction=float("inf"))
        quarantine.add(result.bad_rows)
        quarantine.save_jsonl(out)
    return result


def measure_mixing(data: DataSource, *, batch_size: int = 256, seed: int = 0) -> Mixing:
    """How well a run's batches will be mixed, against a uniform shuffle; no image is read.

    Args:
        data: The data set.
        batch_size: Rows of a batch, over all workers.
        seed: The run's seed.

    Raises:
        UsageError: there are no readable data, or fewer rows than a batch.
    """
    config = as_data(data)
    return mixing_of(build_index(config), config, batch_size, seed)


def convert_data(
    data: DataSource,
    target: str,
    format: ShardFormat,
    *,
    shard_rows: int = 4096,
    group_rows: int | None = None,
    shuffle: int | None = None,
    memory_gb: float = 2.0,
    address: str | None = None,
    show_progress: bool = True,
) -> ConvertResult:
    """Rewrite a data set as Parquet files, WebDataset shards or a folder, on Ray; the bytes of the images stay the same.

    A repeated call continues a stopped one with the missing shards.

    Args:
        data: The source.
        target: An empty folder or URI, or one where the same conversion was stopped.
        format: "parquet", "webdataset" or "folder".
        shard_rows: Rows per shard.
        group_rows: Rows per Parquet row group, the smallest portion that is read; by default 256, and fewer (2 MB) if rows are shuffled.
        shuffle: The seed of a new order of the rows, shuffled over the whole data set; None keeps that of the source.
        memory_gb: The images that a task holds while it shuffles, with their copies, in GB (10^9 bytes).
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw a progress bar.

    Raises:
        FolderInUseError: another command is at work in the target.
        UsageError: the source cannot be read, or the target contains something else or is inside the source.
        TooManyBadRowsError: more rows than `max_bad_fraction` of the data cannot be copied; written shards stay.
    """
    from ray_sassl.orchestrate.batch.data import convert
    from ray_sassl.orchestrate.runtime.session import ray_session

    source = as_data(data)
    check_target(target, source)
    with hold_folder(target, "convert"), ray_session(address):
        sizes = {"shard_rows": shard_rows, "group_rows": group_rows, "memory_gb": memory_gb}
        return convert(source, target, format, **sizes, shuffle=shuffle, show_progress=show_progress)


def list_datasets(root: str | None = None) -> dict[str, tuple[Card, bool]]:
    """The data sets of the papers' transfer tables by name: each one's card, and whether it has been fetched.

    Args:
        root: Folder or URI of fetched data sets; by default the cache.
    """
    place = root or default_root()
    return {card.name: (card, is_prepared(card, place)) for card in CARDS}


def fetch_dataset(
    name: str, *, files: str | None = None, root: str | None = None, keep_files: bool = False, show_progress: bool = True
) -> Prepared | None:
    """Put a data set of the transfer tables into the cache as Parquet, checked against its card; None if it is already there.

    Args:
        name: A name in `list_datasets`.
        files: Folder with its files; by default they are downloaded and checked by their published md5.
        root: Folder or URI for it; by default the cache.
        keep_files: Whether to keep downloaded files.
        show_progress: Whether to draw a progress bar.

    Raises:
        UsageError: the name is unknown, or the files do not match the card.
    """
    from ray_sassl.orchestrate.runtime.progress import progress_bar

    card, place = card_of(name), root or default_root()
    if keep_files and files is not None:
        raise UsageError("--keep-files is for downloads; files given by --from are never deleted, so leave it out")
    if is_prepared(card, place):
        return None
    with progress_bar(card.name, card.num_train + card.num_test, is_shown=show_progress) as advance:
        if files is None:
            return fetch(card, place, keep_files=keep_files, advance=advance)
        return prepare(card, Path(absolute(os.fspath(files))), place, advance=advance)
