"""Rows that could not be used are counted and kept with their reasons; too many of them stop the run."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json_lines
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import redacted

log = logging.getLogger(__name__)

_NAMED = 20
_SAVE_EVERY_S = 2.0
_PAUSE_OVER_SAVE = 20.0
MAX_LISTED = 10_000
"""How many rows the quarantine of a run lists with file and reason."""


@dataclass(frozen=True)
class BadRow:
    """A row, or a whole file, that could not be used.

    Attributes:
        path: The file or shard.
        row: The row's number within the file, -1 for the whole file.
        sample_id: The row's number in the index, -1 for the whole file.
        reason: What is wrong with it.
    """

    path: str
    row: int
    sample_id: int
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", redacted(self.reason))

    def __str__(self) -> str:
        return f"{self.path}{f' row {self.row}' if self.row >= 0 else ''}: {self.reason}"


class TooManyBadRowsError(UsageError):
    """More rows are unusable than `data.max_bad_fraction` allows."""


class Quarantine:
    """The bad rows of one data set, each counted once however often it is found.

    Args:
        num_rows: Rows of the data set.
        max_bad_fraction: The share of them that may be bad.
        option: The option's name for that share, for error messages.
        max_listed: So many rows, and all whole files, are kept with their reasons; further ones only with the kind of damage. None: all.
    """

    def __init__(
        self, num_rows: int, max_bad_fraction: float, option: str = "data.max_bad_fraction", max_listed: int | None = None
    ) -> None:
        self.num_rows = num_rows
        self._option = option
        self.max_bad_fraction = max_bad_fraction
        self._max_listed = max_listed
        self._rows: dict[tuple[int, str], BadRow] = {}
        self._unlisted: dict[int, str] = {}
        """The kind of damage by sample id."""
        self._unsaved: list[BadRow] = []
        self._is_whole = True
        """Whether the file has all rows but these; not while it is written, nor after an error."""

    def add(self, rows: Iterable[BadRow]) -> int:
        """Add the rows; returns how many of them are new.

        Raises:
            TooManyBadRowsError: there are now more than `max_bad_fraction` of the data set's rows; the message names up to 20 files.
        """
        new = [row for row in rows if self._take(row)]
        self._unsaved += new
        self._check(len(new))
        return len(new)

    @property
    def num_bad(self) -> int:
        """Distinct bad rows (and whole files) so far."""
        return len(self._rows) + len(self._unlisted)

    @property
    def rows(self) -> list[BadRow]:
        """The bad rows that are listed, by sample id; whole files come first."""
        return sorted(self._rows.values(), key=lambda row: (row.sample_id, row.path))

    @property
    def sample_ids(self) -> np.ndarray:
        """(n,) int64: the ids of all bad rows, ascending, including those that are not listed."""
        listed = [sample_id for sample_id, _ in self._rows if sample_id >= 0]
        return np.sort(np.array([*listed, *self._unlisted], np.int64))

    def save_jsonl(self, path: str) -> None:
        """Write one JSON object per listed row, and one per kind of damage of the others, to the path or URI, atomically. Non-ASCII
        characters are escaped, so that only `\\n` ends a line."""
        self._unsaved, self._is_whole = [], True
        storage.write_text(path, "".join([*map(_line_of, self.rows), *_lines_of_kinds(self._unlisted)]))

    def appending(self, path: str) -> Callable[[], None]:
        """What appends the rows that were added since the file was loaded or written; it may run in another thread.

        New lines of a local file are flushed to the disk. An object store cannot append, so the whole file is written, as it is after an
        error, which may have left half a line.
        """
        if not self._unsaved and self._is_whole:
            return lambda: None
        if storage.local_path(path) is None or not self._is_whole:
            content, write = "".join([*map(_line_of, self.rows), *_lines_of_kinds(self._unlisted)]), storage.write_text
        else:
            listed = [row for row in self._unsaved if self._key(row) in self._rows]
            others = {row.sample_id: self._unlisted[row.sample_id] for row in self._unsaved if row.sample_id in self._unlisted}
            content, write = "".join([*map(_line_of, listed), *_lines_of_kinds(others)]), storage.append_text
        self._unsaved, self._is_whole = [], False

        def append() -> None:
            write(path, content)
            self._is_whole = True

        return append

    def load_jsonl(self, path: str) -> int:
        """Add what `save_jsonl` and `appending` wrote; returns how many rows are new. A missing file has none; the number of damaged
        lines is logged."""
        lines = read_json_lines(path)
        before, num_damaged = self.num_bad, lines.num_damaged
        for line in lines.objects:
            if is_bad_row(line):
                self._take(BadRow(**line))
            elif _is_kind(line):
                new = (sample_id for sample_id in line["sample_ids"] if (sample_id, "") not in self._rows)
                self._unlisted |= dict.fromkeys(new, sys.intern(line["reason"]))
            else:
                num_damaged += 1
        if num_damaged:
            log.warning("%s: %d of %d lines are damaged and were left out", path, num_damaged, lines.num_damaged + len(lines.objects))
        self._check(self.num_bad - before)
        return self.num_bad - before

    @staticmethod
    def _key(row: BadRow) -> tuple[int, str]:
        return row.sample_id, "" if row.sample_id >= 0 else row.path

    def _take(self, row: BadRow) -> bool:
        """Whether the row is new."""
        key = self._key(row)
        if key in self._rows or row.sample_id in self._unlisted:
            return False
        if row.sample_id < 0 or self._max_listed is None or len(self._rows) < self._max_listed:
            self._rows[key] = row
        else:
            self._unlisted[row.sample_id] = sys.intern(kind_of(row.reason))
        return True

    def _check(self, num_new: int) -> None:
        if num_new and self.num_bad > self.max_bad_fraction * self.num_rows:
            raise TooManyBadRowsError(self._message())

    def _message(self) -> str:
        first_of_file: dict[str, BadRow] = {}
        for row in self.rows:
            first_of_file.setdefault(row.path, row)
        named = "\n".join(f"  {row}" for row in list(first_of_file.values())[:_NAMED])
        left_out = len(first_of_file) - _NAMED
        more = f"\n  ... and {left_out:,} more files" if left_out > 0 else ""
        more += f"\n  ... and {len(self._unlisted):,} more rows" if self._unlisted else ""
        share = self.num_bad / max(self.num_rows, 1)
        return (
            f"{self.num_bad:,} of {self.num_rows:,} rows ({share:.2%}) cannot be used; {self._option} allows "
            f"{self.max_bad_fraction:.2%}. The first of each file:\n{named}{more}"
        )


class QuarantineFile:
    """The quarantine of a run and its file, to which new rows are appended at most every two seconds.

    Args:
        path: The file.
        num_rows: Rows of the data set.
        max_bad_fraction: The share of them that may be bad.
    """

    def __init__(self, path: str, num_rows: int, max_bad_fraction: float) -> None:
        self.quarantine = Quarantine(num_rows, max_bad_fraction, max_listed=MAX_LISTED)
        self._path = path
        self._due_at = time.monotonic() + _SAVE_EVERY_S
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="quarantine")
        self._saving: Future[None] | None = None

    def load(self) -> None:
        """Add what an earlier start of the run has written.

        Raises:
            TooManyBadRowsError: these are more rows than are allowed now.
        """
        self.quarantine.load_jsonl(self._path)

    def add(self, rows: Iterable[BadRow]) -> None:
        """Like `Quarantine.add`."""
        try:
            self.quarantine.add(rows)
        finally:
            self.save_if_due()

    def save_if_due(self) -> None:
        """Save in a thread if the last time was a while ago; the pause is longer if saving takes long, as on an object store. An error of
        it is raised by the next call."""
        if time.monotonic() >= self._due_at and (self._saving is None or self._saving.done()):
            self._settle()
            self._saving = self._thread.submit(self._timed, self.quarantine.appending(self._path))

    def save(self) -> None:
        """Bring the file up to date."""
        with suppress(OSError, storage.StorageError):  # then the whole file is written now
            self._settle()
        self._timed(self.quarantine.appending(self._path))

    def _settle(self) -> None:
        """Wait for what the thread writes."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _timed(self, append: Callable[[], None]) -> None:
        began = time.monotonic()
        try:
            append()
        finally:
            now = time.monotonic()
            self._due_at = now + max(_SAVE_EVERY_S, _PAUSE_OVER_SAVE * (now - began))


def kind_of(reason: str) -> str:
    """The reason up to its first colon: what is wrong, without the details."""
    return reason.partition(":")[0]


def count_kinds(path: str) -> dict[str, int]:
    """How many bad rows the file lists or counts of each kind of damage, the most frequent first; tolerates damaged lines."""
    counts: Counter[str] = Counter()
    for line in read_json_lines(path).objects:
        counts[kind_of(str(line.get("reason", "")))] += len(line["sample_ids"]) if _is_kind(line) else 1
    return dict(counts.most_common())


def _line_of(row: BadRow) -> str:
    return json.dumps(asdict(row)) + "\n"


def _lines_of_kinds(kinds: dict[int, str]) -> list[str]:
    """One line per kind of damage, with the ids of its rows."""
    ids_of: dict[str, list[int]] = {}
    for sample_id, kind in sorted(kinds.items()):
        ids_of.setdefault(kind, []).append(sample_id)
    return [json.dumps({"reason": kind, "sample_ids": ids}) + "\n" for kind, ids in ids_of.items()]


def _is_kind(line: dict[str, Any]) -> bool:
    """Whether the object of a line is a kind of damage with the ids of its rows."""
    ids = line.get("sample_ids")
    has_ids = isinstance(ids, list) and {*map(type, ids)} <= {int}
    return has_ids and line.keys() == {"reason", "sample_ids"} and isinstance(line["reason"], str)


def is_bad_row(line: dict[str, Any]) -> bool:
    """Whether the object of a line is a bad row, with a value of the right type for each field."""
    kinds = {field.name: str if field.type == "str" else int for field in fields(BadRow)}
    return line.keys() == kinds.keys() and all(type(line[name]) is kind for name, kind in kinds.items())
