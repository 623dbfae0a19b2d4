"""Folders of image files. If all of them are in subfolders, the subfolders are their classes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from ray_sassl.data import NO_LABEL, DataConfig, Reader, Rows, SourceFiles
from ray_sassl.data.quarantine import BadRow
from ray_sassl.files import storage

if TYPE_CHECKING:
    from ray_sassl.data.index import Index

_REMOTE_THREADS = 32


class FolderReader(Reader):
    """Reads folders; runs of up to `GROUP_ROWS` files take the place of row groups.

    A class is the first folder below the path that the user gave. Labels number the sorted class names, which are sorted as numbers if all
    of them are whole numbers (2 before 10). There are no labels if an image is outside these folders, or if `label_column` is None.
    """

    def scan(self, files: SourceFiles, config: DataConfig) -> tuple[np.ndarray, tuple[str, ...]]:
        """The label of each file, (n,) int64, and the class names."""
        found: dict[str, int] = {}
        labels = np.full(len(files), NO_LABEL, np.int64)
        for place, name in enumerate(files.names() if config.label_column is not None else ()):
            class_, slash, _ = name.partition("/")
            if not slash:
                return np.full(len(files), NO_LABEL, np.int64), ()
            labels[place] = found.setdefault(class_, len(found))
        names = sorted_classes(found)
        number = {name: label for label, name in enumerate(names)}
        return (np.array([number[name] for name in found], np.int64)[labels] if found else labels), tuple(names)

    def read(self, index: Index, group: int, part: slice = slice(None)) -> Rows:
        _, start, stop = index.group_place(group)
        files = range(start, stop)[part]
        paths = index.file_paths(files.start, files.stop)
        sample_id = index.sample_ids(group)[part]
        if storage.local_path(paths[0]) is not None:
            encoded = [_read(path, int(id_)) for path, id_ in zip(paths, sample_id, strict=True)]
        else:
            with ThreadPoolExecutor(min(_REMOTE_THREADS, len(paths))) as pool:
                encoded = list(pool.map(_read, paths, sample_id.tolist()))
        label = index.rows_of(group, part)["label"].to_numpy()
        return Rows(sample_id, encoded, label, paths, paths, index.rows_in_file(group)[part])

    def labels(self, index: Index) -> np.ndarray:
        return index.row_column("label").to_numpy()

    def names(self, index: Index) -> list[str]:
        return [storage.name_of(path) for path in index.file_names()]


def sorted_classes(names: Iterable[str]) -> list[str]:
    """The names of classes in the order of their labels: sorted as numbers if all are decimal digits, else as text."""
    listed = sorted(names)
    return sorted(listed, key=int) if all(name.isascii() and name.isdigit() and len(name) < 19 for name in listed) else listed


def _read(path: str, sample_id: int) -> bytes | BadRow:
    try:
        return storage.read_object(path) or BadRow(path, 0, sample_id, "the file is empty")
    except OSError as error:
        if storage.local_path(path) is None and not isinstance(error, FileNotFoundError | PermissionError):
            raise  # the store does not answer, which would make every image a bad one
        return BadRow(path, 0, sample_id, f"the file cannot be read: {error.strerror or error}")
