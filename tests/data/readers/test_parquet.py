from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers.parquet import labels_of_groups
from ray_sassl.data.reading import all_labels, build_index, read_groups
from ray_sassl.process.errors import UsageError


def _write(path: Path, **columns: object) -> DataConfig:
    pq.write_table(pa.table(columns), path)
    return DataConfig(path=str(path))


def test_columns_may_have_other_names_and_the_image_may_be_a_struct(tmp_path: Path):
    config = _write(tmp_path / "a.parquet", img=[{"bytes": b"1", "path": "x"}, {"bytes": b"2", "path": None}], fine=[7, 8])
    config = config.model_copy(update={"image_column": "img", "label_column": "fine"})
    rows = read_groups(build_index(config), [0])
    assert (rows.encoded, rows.label.tolist()) == ([b"1", b"2"], [7, 8])


def test_rows_without_an_image_are_bad_rows_and_rows_without_a_label_have_none(tmp_path: Path):
    index = build_index(_write(tmp_path / "a.parquet", image=[b"1", None, b""], label=[3, None, 4]))
    rows = read_groups(index, [0])
    assert rows.encoded[0] == b"1"
    assert rows.encoded[1:] == [BadRow(str(tmp_path / "a.parquet"), row, row, "the image is empty") for row in (1, 2)]
    assert rows.label.tolist() == all_labels(index).tolist() == [3, -1, 4]


def test_a_wrong_column_is_answered_with_the_nearest_and_all_others(tmp_path: Path):
    config = _write(tmp_path / "a.parquet", image=[b"1"], labels=[1])
    with pytest.raises(
        UsageError, match=r"no label column 'label' \(did you mean 'labels'\?\). Its columns: image \(binary\), labels \(int64\)"
    ):
        build_index(config)
    assert read_groups(build_index(config.model_copy(update={"label_column": None})), [0]).label.tolist() == [-1]


def test_a_column_of_another_type_is_refused(tmp_path: Path):
    config = _write(tmp_path / "a.parquet", image=["path.jpg"], label=["cat"])
    with pytest.raises(UsageError, match=r"'image' .* has type string, not encoded images"):
        build_index(config)
    with pytest.raises(UsageError, match=r"'label' .* has type string, not whole-number labels"):
        build_index(_write(tmp_path / "b.parquet", image=[b"1"], label=["cat"]))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"hello")
    with pytest.raises(UsageError, match=r"a.parquet cannot be read as Parquet"):
        build_index(DataConfig(path=str(tmp_path)))


def test_a_damaged_row_group_is_quarantined_and_the_others_are_read(tmp_path: Path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [bytes([row]) * 2000 for row in range(40)], "label": list(range(40))})
    pq.write_table(table, path, row_group_size=20, compression="zstd", use_dictionary=False)
    place = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 60] = b"\xff" * 60
    path.write_bytes(data)
    index = build_index(DataConfig(path=str(path)))
    assert all(isinstance(encoded, bytes) for encoded in read_groups(index, [0]).encoded)
    bad = read_groups(index, [1]).encoded
    assert [(row.row, row.sample_id) for row in bad if isinstance(row, BadRow)] == [(row, row) for row in range(20, 40)]


def test_labels_of_a_damaged_row_group_or_beyond_64_bits_are_missing_and_its_rows_bad(tmp_path: Path):
    path = tmp_path / "a.parquet"
    labels = pa.array([*range(20), *range(2**63, 2**63 + 20), *range(20)], pa.uint64())
    pq.write_table(pa.table({"image": [b"x"] * 60, "label": labels}), path, row_group_size=20, compression="zstd", use_dictionary=False)
    place = pq.read_metadata(path).row_group(2).column(1).data_page_offset
    data = bytearray(path.read_bytes())
    data[place : place + 30] = b"\xff" * 30
    path.write_bytes(data)
    index = build_index(DataConfig(path=str(path)))
    assert all_labels(index).tolist() == [*range(20), *[-1] * 40]
    assert [part.tolist() for part in labels_of_groups(index, [2, 0])] == [[-1] * 20, [*range(20)]]
    assert [isinstance(row, BadRow) for row in read_groups(index, [0, 1, 2]).encoded] == [False] * 20 + [True] * 40


def test_a_file_that_changed_under_the_index_is_an_error(tmp_path: Path):
    index = build_index(_write(tmp_path / "a.parquet", image=[b"1"] * 3, label=[1] * 3))
    _write(tmp_path / "a.parquet", image=[b"1"] * 2, label=[1] * 2)
    with pytest.raises(UsageError, match="has changed since the index was built"):
        read_groups(index, [0])


def test_an_index_of_a_column_that_the_file_lacks_is_an_error(tmp_path: Path):
    index = build_index(_write(tmp_path / "a.parquet", image=[b"1"] * 3, label=[1] * 3))
    other = replace(index, config=index.config.model_copy(update={"image_column": "ilage"}))
    with pytest.raises(UsageError, match="has no column ilage"):
        read_groups(other, [0])


def test_the_rows_of_a_file_that_vanished_are_bad_rows(tmp_path: Path):
    index = build_index(_write(tmp_path / "a.parquet", image=[b"1"] * 3, label=[1] * 3))
    (tmp_path / "a.parquet").unlink()
    bad = read_groups(index, [0]).encoded
    assert [row.sample_id for row in bad if isinstance(row, BadRow)] == [0, 1, 2]
    assert all("gone" in row.reason for row in bad if isinstance(row, BadRow))
