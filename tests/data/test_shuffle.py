import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.convert import Conversion, ShardFormat, load_bad_rows, open_target, plan_conversion
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.data.shuffle import (
    WORK,
    check_memory,
    finish,
    gather,
    missing_portions,
    missing_shards,
    new_places,
    scatter,
    source_portions,
)
from ray_sassl.process.errors import UsageError

NUM_ROWS = 90


def _source(folder: Path, bad: tuple[int, ...] = ()) -> Index:
    images = [b"GIF" if row in bad else b"\xff\xd8\xff" + bytes([row]) * 50 for row in range(NUM_ROWS)]
    folder.mkdir()
    pq.write_table(pa.table({"image": images, "label": np.arange(NUM_ROWS) // 10}), folder / "a.parquet", row_group_size=8)
    return build_index(DataConfig(path=str(folder)))


def _scattered(index: Index, target: Path, format_: ShardFormat = "parquet") -> tuple[Conversion, list[list[int]], np.ndarray]:
    conversion = plan_conversion(index, format_, 32, 4 if format_ == "parquet" else None, shuffle=5)
    open_target(str(target), conversion)
    parts, places = source_portions(index, 16 * 4 * index.num_bytes / index.num_rows), new_places(index.num_rows, 5)
    for portion in missing_portions(str(target), len(parts)):
        scatter(index, conversion, str(target), places, portion, parts[portion])
    return conversion, parts, places


def _gather_all(index: Index, target: Path, conversion: Conversion, parts: list[list[int]], places: np.ndarray) -> int:
    for shard in missing_shards(str(target), conversion):
        gather(index, conversion, str(target), places, shard, len(parts))
    return finish(str(target), conversion, len(parts))


@pytest.mark.parametrize("format_", ["parquet", "webdataset"])
def test_each_row_is_written_once_at_its_new_place(tmp_path: Path, format_: ShardFormat):
    index = _source(tmp_path / "source", bad=(3, 40))
    conversion, parts, places = _scattered(index, tmp_path / "out", format_)
    assert len(parts) > 3
    assert _gather_all(index, tmp_path / "out", conversion, parts, places) == NUM_ROWS - 2
    assert not (tmp_path / "out" / WORK).exists()
    copy = build_index(DataConfig(path=str(tmp_path / "out")))
    rows = read_groups(copy, range(copy.num_groups))
    source = read_groups(index, range(index.num_groups))
    if format_ == "parquet":
        order = [row for row in np.argsort(places).tolist() if row not in (3, 40)]
        assert rows.encoded == [source.encoded[row] for row in order]
        assert rows.label.tolist() == source.label[order].tolist()
        assert copy.group_rows.max() == 4
    assert sorted(rows.encoded) == sorted(image for row, image in enumerate(source.encoded) if row not in (3, 40))  # pyright: ignore
    assert {row.row for row in load_bad_rows(str(tmp_path / "out"))} == {3, 40}


def test_a_shuffle_goes_on_with_what_is_missing_and_ends_the_same(tmp_path: Path):
    index = _source(tmp_path / "source")
    conversion, parts, places = _scattered(index, tmp_path / "whole")
    _gather_all(index, tmp_path / "whole", conversion, parts, places)
    out = tmp_path / "out"
    _scattered(index, out)
    (out / WORK / "portion-000001.arrow").unlink()
    assert missing_portions(str(out), len(parts)) == [1]
    scatter(index, conversion, str(out), places, 1, parts[1])
    gather(index, conversion, str(out), places, 1, len(parts))
    assert missing_shards(str(out), conversion) == [0, 2]
    (out / WORK / "shard-000001.json").unlink()  # killed after the shard and before its sum
    assert missing_shards(str(out), conversion) == [0, 1, 2]
    assert _gather_all(index, out, conversion, parts, places) == NUM_ROWS
    one, other = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (out, tmp_path / "whole"))
    assert one == other


def test_rows_that_are_lost_or_changed_between_the_passes_are_noticed(tmp_path: Path):
    index = _source(tmp_path / "source")
    conversion, parts, places = _scattered(index, tmp_path / "out")
    for shard in missing_shards(str(tmp_path / "out"), conversion):
        gather(index, conversion, str(tmp_path / "out"), places, shard, len(parts))
    told = tmp_path / "out" / WORK / "shard-000001.json"
    facts = json.loads(told.read_text())
    for changed in ({"rows": 31}, {"sum": facts["sum"] + 1}):
        told.write_text(json.dumps(facts | changed))
        with pytest.raises(RuntimeError, match=r"hold (90|89) rows"):
            finish(str(tmp_path / "out"), conversion, len(parts))
    assert (tmp_path / "out" / WORK).exists()


def test_a_shard_that_does_not_fit_and_a_folder_are_refused(tmp_path: Path):
    index = _source(tmp_path / "source")
    conversion = plan_conversion(index, "parquet", 4096, shuffle=0)
    check_memory(index, conversion, 4.1 * index.num_bytes)
    with pytest.raises(UsageError, match=r"give --shard-rows 4\d or less, or --memory-gb"):
        check_memory(index, conversion, 2 * index.num_bytes)
    with pytest.raises(UsageError, match="for shards"):
        plan_conversion(index, "folder", 4096, shuffle=0)


def test_the_order_is_a_permutation_by_the_seed():
    assert sorted(new_places(1000, 3).tolist()) == list(range(1000))
    assert new_places(1000, 3).tolist() == new_places(1000, 3).tolist() != new_places(1000, 4).tolist()
    assert abs(np.corrcoef(new_places(100_000, 3), np.arange(100_000))[0, 1]) < 0.02
