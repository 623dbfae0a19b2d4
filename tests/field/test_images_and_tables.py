"""Images and tables from elsewhere: PNGs with large texts, rows that hold paths, names of classes, copies inside their source."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from ray_sassl.data import DataConfig
from ray_sassl.data.convert import check_target, convert_shard, open_target, plan_conversion
from ray_sassl.data.decode import DecodeError, decode, decode_rows
from ray_sassl.data.index import Index
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.readers import parquet
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.evaluation.datasets import labeled_data
from ray_sassl.plugins import UsageError

Make = Callable[[str], Path]


def _index(path: Path | str) -> Index:
    return build_index(DataConfig(path=str(path)))


def test_pngs_with_profiles_and_texts_of_megabytes_are_whole_images(field: Make, build: ModuleType):
    index = _index(field("large_png_chunks"))
    images = decode_rows(read_groups(index, [0]), 10**6)
    assert len(images) == 8
    assert not [image for image in images if isinstance(image, BadRow)]
    wanted = np.asarray(Image.open(io.BytesIO(build.photo())).convert("RGB"))
    assert sum(np.array_equal(np.asarray(image), wanted) for image in images) >= 3


@pytest.mark.parametrize("after_the_pixels", [False, True])
def test_a_text_that_would_be_gigabytes_is_never_unpacked(after_the_pixels: bool, build: ModuleType):
    out = io.BytesIO()
    texts = PngImagePlugin.PngInfo()
    texts.add_text("bomb", "x" * (20 << 20), zip=True)
    Image.open(io.BytesIO(build.photo())).convert("RGB").save(out, "PNG", pnginfo=texts)
    encoded = out.getvalue()
    if after_the_pixels:
        start = encoded.index(b"zTXt") - 4
        stop = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
        end = encoded.index(b"IEND") - 4
        encoded = encoded[:start] + encoded[stop:end] + encoded[start:stop] + encoded[end:]
    assert decode(encoded, 10**6).size == (32, 32)


def test_a_chunk_that_lies_about_its_length_is_damage(build: ModuleType):
    encoded = build.photo(0, 0, "PNG")
    with pytest.raises(DecodeError, match="damaged"):
        decode(encoded[:33] + b"\xff\xff\xff\xfftEXt" + encoded[41:], 10**6)


def test_rows_that_hold_paths_say_so(field: Make):
    rows = read_groups(_index(field("path_only_rows")), [0])
    assert len(rows) == 9
    assert "the row holds a path ('photos/0.jpg') and no bytes" in str(rows.encoded[0])


def test_structs_are_read_in_batches_of_bounded_size(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [build.photo(row % 8, row) for row in range(100)]
    table = pa.table({"image": pa.array([{"bytes": image, "path": "x"} for image in images], kind), "label": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    sizes: list[int] = []
    columns = parquet._columns
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(parquet, "_columns", lambda batch, config: sizes.append(batch.num_rows) or columns(batch, config))
    rows = read_groups(_index(tmp_path), [0])
    assert (rows.encoded, rows.label.tolist()) == (images, list(range(100)))
    assert 1 <= max(sizes) < 20


@pytest.mark.chaos
def test_more_than_two_gigabytes_in_a_row_group_of_structs_are_read(build: ModuleType, tmp_path: Path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = build.photo() + bytes(2**26)
    column = pa.chunked_array([pa.array([{"bytes": image, "path": "x"}], kind) for _ in range(34)])
    options = {"row_group_size": 34, "compression": "zstd", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"image": column, "label": list(range(34))}), tmp_path / "a.parquet", **options)
    rows = read_groups(_index(tmp_path), [0])
    assert (len(rows), rows.label.tolist()) == (34, list(range(34)))
    assert all(row == image for row in rows.encoded)


def _convert(source: Path, target: Path) -> Path:
    index = _index(source)
    conversion = plan_conversion(index, "parquet", 1000)
    for shard in open_target(str(target), conversion):
        convert_shard(index, conversion, str(target), shard)
    return target


def test_splits_that_were_converted_apart_keep_the_names_of_their_classes(field: Make, tmp_path: Path):
    folder = field("split_without_a_class")
    train, test = (_convert(folder / split, tmp_path / f"{split}_copy") for split in ("train", "test"))
    assert _index(train).class_names == tuple(f"class{number:02d}" for number in range(8))
    for pair in ((train, test), (folder / "train", test), (train, folder / "test")):
        with pytest.raises(UsageError, match=r"their labels mean different things; in one only: class00"):
            labeled_data(DataConfig(path=str(pair[0])), DataConfig(path=str(pair[1])), 32)
    assert len(labeled_data(DataConfig(path=str(train)), DataConfig(path=str(folder / "train")), 32).test.labels) == 192


def test_names_that_the_library_datasets_wrote_are_read_and_foreign_ones_left_alone(build: ModuleType, tmp_path: Path):
    table = pa.table({"image": [build.photo(n) for n in range(2)], "label": [0, 1]})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    for name, metadata in {
        "hub": {"huggingface": json.dumps(features)},
        "torn": {"huggingface": "{"},
        "odd": {"ray_sassl.class_names": '["a", "a"]'},
        "deep": {"huggingface": "[" * 10_000},
    }.items():
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / f"{name}.parquet")
        assert _index(tmp_path / f"{name}.parquet").class_names == (("cat", "dog") if name == "hub" else ())
    pq.write_table(table.replace_schema_metadata({"ray_sassl.class_names": '["dog", "cat"]'}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match=r"name their classes differently \(their order\)"):
        _index(tmp_path)


def test_a_copy_inside_its_source_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data").mkdir()
    source = DataConfig(path=str(tmp_path / "data"))
    for target in (tmp_path / "data", tmp_path / "data" / "copy", tmp_path / "link" / "copy"):
        with pytest.raises(UsageError, match="which it is made of"):
            check_target(str(target), source)
    check_target(str(tmp_path / "data2"), source)
    with pytest.raises(UsageError, match="which it is made of"):
        check_target("s3://bucket/data/copy?region=x", DataConfig(path="s3://bucket/data"))
