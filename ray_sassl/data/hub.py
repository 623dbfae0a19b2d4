"""Data sets of the Hugging Face hub, `hf:OWNER/NAME`: read with the library `datasets`, and kept as Parquet shards in the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_sassl.files.cache import cache_dir, locked, mark_cache
from ray_sassl.files.hub_client import fetching
from ray_sassl.process.errors import UsageError

HUB = "hf:"
_FORM = re.compile(r"hf:(?P<name>[^@:]+)(?:@(?P<revision>[^@:]+))?(?::(?P<split>[^:]*))?(?::(?P<subset>[^:]+))?")
_SHARD_ROWS, _GROUP_ROWS = 8192, 256
_SEED = 0
_MADE_AT = 1_767_225_600  # a fixed time of change, so that every machine's index has the same fingerprint


@dataclass(frozen=True)
class HubName:
    """The parts of `hf:NAME[@REVISION][:SPLIT[:SUBSET]]`.

    Attributes:
        name: `OWNER/NAME` on the hub, or a folder that `datasets` can load.
        revision: A branch, tag or commit, or None for the newest.
        split: `train` by default.
        subset: The configuration of the data set, where it has several.
    """

    name: str
    revision: str | None
    split: str
    subset: str | None


def is_hub(path: str) -> bool:
    """Whether the path names a data set of the hub; `hf://` is a filesystem."""
    return path.startswith(HUB) and "://" not in path


def hub_name(path: str) -> HubName:
    """The parts of the path.

    Raises:
        UsageError: it has another form.
    """
    found = _FORM.fullmatch(path)
    if found is None:
        raise UsageError(f"{path} should be hf:OWNER/NAME, with @REVISION, :SPLIT and :SUBSET after it where wanted")
    return HubName(found["name"], found["revision"], found["split"] or "train", found["subset"])


@lru_cache(maxsize=8)
def ensure_hub(path: str) -> Path:
    """The folder of the data set's Parquet shards, with the classes mixed; it is made on first use, below the cache folder.

    Several processes may ask at once. Other nodes make their own copy, which has the same bytes as long as the data set is the same.

    Raises:
        UsageError: `datasets` is not installed, or does not find the data set, its split or its subset.
    """
    name = hub_name(path)
    folder = cache_dir() / "hub" / f"{name.name.strip('/').rpartition('/')[2]}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    with locked(folder):
        if not folder.is_dir():
            mark_cache()
            aside = Path(tempfile.mkdtemp(prefix=".hub-", dir=folder.parent))
            try:
                _write(name, aside, path)
                aside.chmod(0o755)
                aside.rename(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write(name: HubName, folder: Path, path: str) -> None:
    """Shards as the hub has them: images as a struct of `bytes` and `path`, the names of classes in the metadata."""
    try:
        import datasets
        from datasets.exceptions import DatasetsError
        from datasets.table import embed_table_storage
    except ImportError as error:
        raise UsageError(
            f"{path} is read with the library `datasets`: pip install 'ray-sassl[hf]'. Without it, download the data set's Parquet files "
            f"(hf download --repo-type dataset {name.name}) and give their folder"
        ) from error
    try:
        with fetching(path):
            dataset = datasets.load_dataset(name.name, name.subset, split=name.split, revision=name.revision)
    except (OSError, ValueError, DatasetsError) as error:
        raise UsageError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    dataset = dataset.shuffle(seed=_SEED).with_format("arrow")
    schema = dataset.features.arrow_schema
    for number, first in enumerate(range(0, len(dataset), _SHARD_ROWS)):
        shard = folder / f"data-{number:05d}.parquet"
        with pq.ParquetWriter(shard, schema, compression="NONE") as writer:
            stop = min(first + _SHARD_ROWS, len(dataset))
            for start in range(first, stop, _GROUP_ROWS):
                group: Any = dataset[start : min(start + _GROUP_ROWS, stop)]
                writer.write_table(embed_table_storage(group).cast(schema))
        os.utime(shard, (_MADE_AT, _MADE_AT))
