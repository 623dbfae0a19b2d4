"""Images that are in two data sets are found by their bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.overlap import Overlap, digests, overlap_of
from ray_sassl.data.reading import build_index


def _index(path: Path, images: list[bytes]) -> Index:
    pq.write_table(pa.table({"image": images, "label": [0] * len(images)}), path, row_group_size=3)
    return build_index(DataConfig(path=str(path)))


def _overlap(first: Index, other: Index, named: int = 20) -> Overlap:
    parts = [[digests(index, [group]) for group in range(index.num_groups)] for index in (first, other)]
    return overlap_of(first, parts[0][::-1], other, parts[1], named)  # parts end in any order


def test_shared_images_are_counted_and_named_in_both_sets(tmp_path: Path):
    first = _index(tmp_path / "a.parquet", [b"%d" % number for number in range(8)])
    other = _index(tmp_path / "b.parquet", [b"x", b"5", b"y", b"5", b"0"])
    assert _overlap(first, other) == Overlap(
        num_other=5,
        num_shared=3,
        named=tuple((f"{tmp_path}/a.parquet#{a}", f"{tmp_path}/b.parquet#{b}") for a, b in ((5, 1), (5, 3), (0, 4))),
    )
    assert len(_overlap(first, other, named=1).named) == 1


def test_sets_without_a_common_image_do_not_overlap(tmp_path: Path):
    first, other = _index(tmp_path / "a.parquet", [b"a", b"b"]), _index(tmp_path / "b.parquet", [b"A", b"ab"])
    assert _overlap(first, other) == Overlap(2, 0, ())


def test_rows_that_cannot_be_read_are_in_no_overlap(tmp_path: Path):
    empty = np.empty(0, np.int64), np.empty(0, np.uint64)
    index = _index(tmp_path / "a.parquet", [b"a", b"b"])
    assert overlap_of(index, [empty], index, [digests(index, [0])]) == Overlap(2, 0, ())
    assert overlap_of(index, [], index, []) == Overlap(0, 0, ())
