"""Labeled images as encoders are evaluated on: resized, cropped to the center, in batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ray_sassl.data import NO_LABEL, Rows
from ray_sassl.data.ahead import ahead
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import read_groups
from ray_sassl.pipeline import OnBad, decode_images
from ray_sassl.views.center_crop import EvaluationView, as_view

_BATCHES_AHEAD = 1

_SPREAD_GROUPS = 64

BATCH_ROWS = 256


@dataclass(frozen=True)
class EvaluationBatch:
    """A batch as encoders are evaluated on.

    Attributes:
        images: (B, size_px, size_px, 3) uint8.
        labels: (B,) int64.
        sample_id: (B,) int64.
    """

    images: np.ndarray
    labels: np.ndarray
    sample_id: np.ndarray


def chosen_rows(rows: Rows, rows_per_group: int, wanted: np.ndarray | None) -> Rows | None:
    """The labeled images among those of a row group, spread over it; None where it has none.

    Args:
        wanted: (num_rows,) bool by sample id: of these rows only.
    """
    labeled = rows.sample_id[rows.label != NO_LABEL]
    labeled = labeled if wanted is None else labeled[wanted[labeled]]
    if not len(labeled):
        return None
    return rows.take(labeled[np.unique(np.linspace(0, len(labeled) - 1, min(rows_per_group, len(labeled))).round().astype(int))])


def evaluation_images(
    index: Index, groups: Sequence[int], view: EvaluationView | int, on_bad: OnBad, *, batch_size: int = 64, num_threads: int = 1
) -> Iterator[EvaluationBatch]:
    """The images of these row groups as encoders are evaluated on; rows without a label are left out."""
    rows = read_groups(index, groups)
    labeled = rows.take(rows.sample_id[rows.label != NO_LABEL]) if (rows.label != NO_LABEL).any() else None
    return decoded([labeled], index.config.max_pixels, view, on_bad, batch_size, num_threads)


def decoded(
    parts: Iterable[Rows | None],
    max_pixels: int,
    view: EvaluationView | int,
    on_bad: OnBad,
    batch_size: int = BATCH_ROWS,
    num_threads: int = 2,
) -> Iterator[EvaluationBatch]:
    """The images of the parts in batches; while the caller works on one batch, the threads decode the next."""
    batches = ((rows, rows.sample_id[at : at + batch_size]) for rows in parts if rows is not None for at in range(0, len(rows), batch_size))
    with ThreadPoolExecutor(num_threads) as pool:

        def start(batch: tuple[Rows, np.ndarray]) -> list[Future[tuple[EvaluationBatch, list[BadRow]]]]:
            rows, sample_id = batch
            pieces = [ids for ids in np.array_split(sample_id, num_threads) if len(ids)]
            return [pool.submit(_evaluation_piece, rows.take(ids), max_pixels, as_view(view)) for ids in pieces]

        for started in ahead(start, batches, _BATCHES_AHEAD):
            done = [future.result() for future in started]
            if bad := [row for _, rows in done for row in rows]:
                on_bad(bad)
            columns = ([getattr(piece, name) for piece, _ in done] for name in ("images", "labels", "sample_id"))
            yield EvaluationBatch(*(np.concatenate(column) if len(column) > 1 else column[0] for column in columns))


def _evaluation_piece(rows: Rows, max_pixels: int, view: EvaluationView) -> tuple[EvaluationBatch, list[BadRow]]:
    bad: list[BadRow] = []
    views, good = decode_images(rows, max_pixels, lambda image: np.asarray(view.of(image)), bad.extend)
    pixels = np.stack(views) if views else np.empty((0, view.size_px, view.size_px, 3), np.uint8)
    return EvaluationBatch(pixels, rows.label[good], rows.sample_id[good]), bad


def chosen_groups(index: Index, limit: int | None, wanted: np.ndarray | None) -> tuple[list[int], int]:
    """The row groups to read for `limit` images, and how many to take from each: 64 groups that are spread over the data set, or more if
    row groups are small."""
    counts = index.group_rows if wanted is None else _counts(index, wanted)
    every, num_rows = np.flatnonzero(counts > 0), int(counts.sum())
    if limit is None or limit >= num_rows:
        return every.tolist(), int(counts.max())
    num = min(len(every), max(_SPREAD_GROUPS, math.ceil(limit * len(every) / num_rows)))
    groups = every[np.unique(np.linspace(0, len(every) - 1, num).round().astype(int))]
    return groups.tolist(), max(1, limit // len(groups))


def chosen_parts(index: Index, limit: int | None, wanted: np.ndarray | None) -> tuple[list[tuple[int, int]], int]:
    """The batches that the chosen rows make, as (row group, number of the batch in it) in the order of the rows, and how many rows to take
    from each group. Where rows have no label, a group has fewer batches than that."""
    groups, rows_per_group = chosen_groups(index, limit, wanted)
    counts = index.group_rows if wanted is None else _counts(index, wanted)
    num_parts = -(-np.minimum(counts[groups], rows_per_group) // BATCH_ROWS)
    return [(group, part) for group, num in zip(groups, num_parts.tolist(), strict=True) for part in range(num)], rows_per_group


def _counts(index: Index, wanted: np.ndarray) -> np.ndarray:
    """(num_groups,) how many wanted rows each row group has."""
    until = np.concatenate([[0], np.cumsum(wanted)])
    return until[index.group_first + index.group_rows] - until[index.group_first]
