"""Images and tables from elsewhere: PNGs with large texts, rows that hold paths, names of classes, copies inside their source."""

import io
import json
import zlib
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
from ray_sassl.exporting.encoder import Preprocess
from ray_sassl.process.errors import UsageError

Make = Callable[[str], Path]


def _index(path: Path | str) -> Index:
    return build_index(DataConfig(path=str(path)))


def test_pngs_with_profiles_and_texts_of_megabytes_are_whole_images(field: Make, build: ModuleType):
    index = _index(field("large_png_chunks"))
    images = decode_rows(read_groups(index, [0]), 10**6, lambda image: image)
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


def test_a_chunk_with_a_wrong_length_is_damage(build: ModuleType):
    encoded = build.photo(0, 0, "PNG")
    with pytest.raises(DecodeError, match="damaged"):
        decode(encoded[:33] + b"\xff\xff\xff\xfftEXt" + encoded[41:], 10**6)


def test_a_row_of_pixels_that_is_too_long_for_the_decoder_is_damage_and_ends_nothing():
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = chunk(b"IHDR", (10**8).to_bytes(4, "big") + b"\0\0\0\1\x08\2\0\0\0")
    with pytest.raises(DecodeError, match="damaged: MemoryError"):
        decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x") + chunk(b"IEND", b""), 10**8)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS, which `git lfs pull` replaces by the file"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><title>404", "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (b"\0\0\0\x20ftypavif", "AVIF or HEIC"),
    ],
)
def test_a_file_that_is_no_image_is_named(start: bytes, words: str):
    with pytest.raises(DecodeError, match=f"^not a JPEG, PNG or WebP image but {words}$"):
        decode(start, 100)


def test_rows_that_hold_paths_say_so(field: Make):
    rows = read_groups(_index(field("path_only_rows")), [0])
    assert len(rows) == 9
    assert "the row has a path ('photos/0.jpg') and no bytes" in str(rows.encoded[0])


def test_structs_are_read_in_batches_of_bounded_size(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [build.photo(row % 8, row) for row in range(100)]
    table = pa.table({"image": pa.array([{"bytes": image, "path": "x"} for image in images], kind), "label": list(range(100))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    sizes: list[int] = []
    columns = parquet._images_and_labels
    monkeypatch.setattr(parquet, "_BATCH_BYTES", 10_000)
    monkeypatch.setattr(parquet, "_images_and_labels", lambda batch, config: sizes.append(batch.num_rows) or columns(batch, config))
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


def test_class_names_of_the_library_datasets_are_read_and_foreign_ones_ignored(build: ModuleType, tmp_path: Path):
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
        with pytest.raises(UsageError, match="is inside its source"):
            check_target(str(target), source)
    check_target(str(tmp_path / "data2"), source)
    with pytest.raises(UsageError, match="is inside its source"):
        check_target("s3://bucket/data/copy?region=x", DataConfig(path="s3://bucket/data"))


def _stored(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def _with_modes() -> dict[str, bytes]:
    """PNGs of every kind that Pillow opens in a mode of its own, some with a value or an entry of the palette that is transparent."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    color, gray = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
    wide = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    return {
        "sixteen bits": _stored(wide),
        "sixteen bits, one value transparent": _stored(wide, transparency=int(pixels[0, 0, 0]) * 257),
        "alpha": _stored(Image.fromarray(pixels)),
        "gray and alpha": _stored(Image.fromarray(pixels).convert("LA")),
        "palette": _stored(color.convert("P")),
        "palette, one entry transparent": _stored(color.convert("P"), transparency=3),
        "palette, each entry with an alpha": _stored(color.convert("P"), transparency=bytes(range(256))),
        "gray, one value transparent": _stored(gray, transparency=int(pixels[0, 0, 0])),
        "color, one value transparent": _stored(color, transparency=tuple(map(int, pixels[0, 0, :3]))),
        "bits": _stored(gray.convert("1")),
    }


@pytest.mark.parametrize("name", _with_modes())
def test_an_image_has_the_same_pixels_by_path_by_content_as_a_pil_image_and_as_data(name: str, tmp_path: Path):
    encoded = _with_modes()[name]
    path = tmp_path / "image.png"
    path.write_bytes(encoded)
    preprocess = Preprocess(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    (by_reader,) = decode_rows(read_groups(_index(tmp_path), [0]), 10**6, lambda image: image)
    assert isinstance(by_reader, Image.Image)
    wanted = preprocess(np.asarray(by_reader)).numpy()
    for given in (path, encoded, Image.open(path)):
        assert np.array_equal(preprocess(given).numpy(), wanted)
    if "transparent" in name:
        assert (np.asarray(by_reader) == 255).all(axis=-1).any(), "what is transparent is white"


def test_a_ramp_of_sixteen_bits_is_a_ramp_by_every_way(field: Make):
    path = field("sixteen_bit_png") / "ramp.png"
    preprocess = Preprocess(64, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for given in (path, Image.open(path), path.read_bytes()):
        assert np.abs(preprocess(given).numpy()[0].ravel() - np.linspace(0, 1, 4096)).max() < 0.01


def test_pil_images_of_modes_that_no_png_has_are_scaled_converted_or_refused():
    preprocess = Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    gray = np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)
    wanted = preprocess(Image.fromarray(gray)).numpy()
    big_endian = Image.frombytes("I;16B", (32, 32), (gray.astype(">u2") * 257).tobytes())
    as_float, whole = Image.fromarray(gray.astype(np.float32) / 255), Image.fromarray(gray.astype(np.int32) * 257)
    premultiplied = Image.fromarray(np.dstack([gray, np.full_like(gray, 255)])).convert("La")
    for image in (big_endian, as_float, whole, premultiplied):
        assert np.array_equal(preprocess(image).numpy(), wanted), image.mode
    cmyk = Image.merge("CMYK", [Image.fromarray(255 - gray)] * 3 + [Image.new("L", (32, 32))])
    assert np.array_equal(preprocess(cmyk).numpy(), wanted)
    for values in (gray.astype(np.float32), np.full((32, 32), np.nan, np.float32), gray.astype(np.int32) * 1000, -gray.astype(np.int32)):
        with pytest.raises(UsageError, match=r"must have values from 0 to .* scale them"):
            preprocess(Image.fromarray(values))


def test_a_pil_image_that_is_cut_off_is_a_sentence(build: ModuleType):
    cut = Image.open(io.BytesIO(build.photo(0, 0, "PNG")[:1500]))
    with pytest.raises(UsageError, match="damaged"):
        Preprocess(32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))(cut)


def test_a_table_with_two_columns_of_a_name_is_refused(build: ModuleType, tmp_path: Path):
    columns = [pa.array([build.photo()]), pa.array([build.photo()]), pa.array([0])]
    pq.write_table(pa.table(columns, names=["image", "image", "label"]), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="has 2 columns called 'image'; rename all but one"):
        _index(tmp_path)
