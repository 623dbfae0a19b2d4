"""What is in memory while images are read: their files and one decoded image for each thread, however many there are."""

import os
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sassl.data import DataConfig
from ray_sassl.data.index import LARGE_GROUP_BYTES, Index, large_groups
from ray_sassl.data.inspect import contact_sheet
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation.datasets import LabeledImages, check_usable
from tests.alive import Alive

PEAK = """
import sys
from pathlib import Path

def peak(reset=False):
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")).split()[1])

from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index, read_groups
"""
READ = """
index = build_index(DataConfig(path=sys.argv[1]))
before = peak(reset=True)
rows = read_groups(index, [0])
print(peak() - before, sum(map(len, rows.encoded)))
"""
CROP = """
from ray_sassl.pipeline import crop_rows
from ray_sassl.views.recipes import ViewConfig

for path in sys.argv[1:]:
    rows = read_groups(build_index(DataConfig(path=path)), [0])
    before = peak(reset=True)
    crop_rows(rows, [(ViewConfig(), 32)] * 2, 0, 0, 10**8, print)
    print(peak() - before)
"""


def _measured(program: str, *paths: Path) -> list[list[int]]:
    command = [sys.executable, "-c", PEAK + program, *map(str, paths)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=os.getcwd()).stdout
    return [[int(number) for number in line.split()] for line in output.splitlines()]


def test_a_large_row_group_takes_little_more_than_its_images(tmp_path: Path):
    draws = np.random.default_rng(0)
    found = []
    for count in (4000, 10_000):
        images = [draws.bytes(10_000) for _ in range(count)]
        pq.write_table(pa.table({"image": images, "label": range(count)}), tmp_path / f"{count}.parquet", row_group_size=count)
        found += _measured(READ, tmp_path / f"{count}.parquet")
    (few, few_bytes), (many, many_bytes) = found
    assert many_bytes - few_bytes == 60_000_000
    assert many - few < 1.3 * (many_bytes - few_bytes)


def _photographs(folder: Path, count: int, side_px: int) -> Path:
    folder.mkdir()
    ramp = np.linspace(0, 255, side_px, dtype=np.uint8)
    for number in range(count):
        pixels = np.stack([np.tile(ramp, (side_px, 1)), np.tile(ramp[:, None], (1, side_px)), np.full((side_px, side_px), number)], axis=2)
        file = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG" if number % 2 else "JPEG")
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
    return folder


def test_the_memory_of_a_block_is_that_of_one_image(tmp_path: Path):
    few, many = _measured(CROP, _photographs(tmp_path / "few", 4, 1500), _photographs(tmp_path / "many", 20, 1500))
    of_one = 1500 * 1500 * 3
    assert many[0] < few[0] + 2 * of_one


@pytest.fixture
def photographs(tmp_path: Path) -> Index:
    for number in range(12):
        _photographs(tmp_path / f"class-{number % 2}-{number}", 2, 40)
    return build_index(DataConfig(path=str(tmp_path)))


def test_pictures_and_evaluations_hold_one_decoded_image_for_each_thread(
    photographs: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    alive = Alive(monkeypatch)
    contact_sheet(photographs, tmp_path / "sheet.png")
    check_usable(photographs)
    assert (alive.most, alive.total) == (1, 48)
    assert sum(len(labels) for _, labels in LabeledImages(photographs.config, 32)) == 24
    assert (alive.most <= 2, alive.total) == (True, 72)


def test_large_row_groups_are_named(tmp_path: Path):
    images = pa.array([b"x" * 1000] * 8)
    pq.write_table(pa.table({"image": images, "label": range(8)}), tmp_path / "a.parquet", row_group_size=4)
    index = build_index(DataConfig(path=str(tmp_path)))
    assert large_groups(index) is None
    large = index.files.set_column(1, "size_bytes", pa.array([5 * LARGE_GROUP_BYTES]))
    message = large_groups(replace(index, files=large))
    assert message is not None
    assert message.startswith("2 of 2 row groups are larger than 512 MB, the largest about 1,280 MB (4 rows)")
