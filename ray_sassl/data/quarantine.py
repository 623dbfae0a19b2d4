"""Rows that could not be used: kept with their reason, counted, and too many of them stop the run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from ray_sassl.files import storage
from ray_sassl.files.json_files import read_json_lines
from ray_sassl.plugins import UsageError

log = logging.getLogger(__name__)

_NAMED = 20


@dataclass(frozen=True)
class BadRow:
    """A row, or a whole file, that could not be used.

    Attributes:
        path: The file or shard.
        row: The row's number within the file, -1 where the whole file is meant.
        sample_id: The row's number in the index, -1 where the whole file is meant.
        reason: What is wrong with it.
    """

    path: str
    row: int
    sample_id: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}{f' row {self.row}' if self.row >= 0 else ''}: {self.reason}"


class TooManyBadRowsError(UsageError):
    """More of the data set is unusable than `data.max_bad_fraction` allows."""


class Quarantine:
    """The bad rows of one data set, each counted once however often it is met.

    Args:
        num_rows: Rows of the data set.
        max_bad_fraction: The share of them that may be bad.
        option: What the user calls that share.
    """

    def __init__(self, num_rows: int, max_bad_fraction: float, option: str = "data.max_bad_fraction") -> None:
        self.num_rows = num_rows
        self._option = option
        self.max_bad_fraction = max_bad_fraction
        self._rows: dict[tuple[int, str], BadRow] = {}

    def add(self, rows: Iterable[BadRow]) -> int:
        """Take the rows in; returns how many of them are new.

        Raises:
            TooManyBadRowsError: there are now more than `max_bad_fraction` of the data set's rows; the message names up to 20 files.
        """
        before = len(self._rows)
        for row in rows:
            self._rows.setdefault((row.sample_id, "" if row.sample_id >= 0 else row.path), row)
        if len(self._rows) > before and self.num_bad > self.max_bad_fraction * self.num_rows:
            raise TooManyBadRowsError(self._message())
        return len(self._rows) - before

    @property
    def num_bad(self) -> int:
        """Distinct bad rows (and whole files) so far."""
        return len(self._rows)

    @property
    def rows(self) -> list[BadRow]:
        """The bad rows by sample id; whole files come first."""
        return sorted(self._rows.values(), key=lambda row: (row.sample_id, row.path))

    def save_jsonl(self, path: str) -> None:
        """Write one JSON object per bad row to the path or URI, atomically; what is not ASCII is escaped, so that only `\\n` ends a
        line."""
        storage.write_text(path, "".join(json.dumps(asdict(row)) + "\n" for row in self.rows))

    def load_jsonl(self, path: str) -> int:
        """Take in what `save_jsonl` wrote; returns how many rows are new. A file that is not there holds none; damaged lines are counted in
        the log."""
        lines = read_json_lines(path)
        rows = [BadRow(**line) for line in lines.objects if _is_row(line)]
        if damaged := lines.num_damaged + len(lines.objects) - len(rows):
            log.warning("%s: %d of %d lines are damaged and were left out", path, damaged, lines.num_damaged + len(lines.objects))
        return self.add(rows)

    def _message(self) -> str:
        first_of_file: dict[str, BadRow] = {}
        for row in self.rows:
            first_of_file.setdefault(row.path, row)
        named = "\n".join(f"  {row}" for row in list(first_of_file.values())[:_NAMED])
        left_out = len(first_of_file) - _NAMED
        more = f"\n  ... and {left_out:,} more files" if left_out > 0 else ""
        share = self.num_bad / max(self.num_rows, 1)
        return (
            f"{self.num_bad:,} of {self.num_rows:,} rows ({share:.2%}) cannot be used; {self._option} allows "
            f"{self.max_bad_fraction:.2%}. The first of each file:\n{named}{more}"
        )


def _is_row(line: dict[str, Any]) -> bool:
    """Whether the object of a line is a bad row, with a value of the right type for each field."""
    kinds = {field.name: str if field.type == "str" else int for field in fields(BadRow)}
    return line.keys() == kinds.keys() and all(type(line[name]) is kind for name, kind in kinds.items())
