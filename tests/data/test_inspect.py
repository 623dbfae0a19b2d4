from pathlib import Path

import numpy as np
from PIL import Image

from ray_sassl.data import DataConfig
from ray_sassl.data.inspect import Spread, contact_sheet, inspect
from ray_sassl.data.reading import build_index


def _folder(root: Path) -> Path:
    for number, (name, size) in enumerate([("a/1.jpg", (30, 20)), ("a/2.jpg", (50, 40)), ("b/3.png", (10, 60))]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (0, 80 * number, 0)).save(root / name)
    (root / "b" / "4.jpg").write_bytes(b"GIF89a")
    (root / "b" / "readme.txt").write_text("hello")
    return root


def test_a_summary_counts_rows_labels_formats_and_sizes(tmp_path: Path):
    summary = inspect(build_index(DataConfig(path=str(_folder(tmp_path)))))
    assert (summary.format, summary.num_files, summary.num_rows, summary.num_groups) == ("folder", 4, 4, 1)
    assert summary.labels == {0: 2, 1: 2}
    assert summary.class_names == ("a", "b")
    assert summary.image_formats == {"JPEG": 2, "PNG": 1}
    assert (summary.width_px, summary.height_px) == (Spread(10, 30, 50), Spread(20, 40, 60))
    assert [Path(row.path).name for row in summary.bad_rows] == ["4.jpg"]
    assert summary.ignored == {"txt": 1}


def test_a_contact_sheet_shows_images_in_their_shape_and_bad_rows_in_red(tmp_path: Path):
    contact_sheet(build_index(DataConfig(path=str(_folder(tmp_path / "data")))), tmp_path / "sheet.png", columns=2, lines=2, tile_px=32)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (66, 66, 3)
    assert (sheet[2, 16] == 255).all(), "a wide image leaves white above it"
    assert (sheet[40:, 40:] == (200, 40, 40)).all()


def test_a_sample_of_a_large_set_is_no_larger_than_asked_for(shared_dir: Path):
    summary = inspect(build_index(DataConfig(path=str(shared_dir / "data/cifar10/train-*.parquet"))), num_sampled=100)
    assert (summary.num_rows, summary.num_sampled, summary.image_formats) == (50_000, 100, {"JPEG": 100})
    assert summary.labels == dict.fromkeys(range(10), 5000)
    assert summary.width_px == Spread(32, 32, 32)
