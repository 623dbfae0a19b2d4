from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_sassl.data.quarantine import BadRow, TooManyBadRowsError
from ray_sassl.process.errors import UsageError
from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.distillation.crops import Crops, make_crops
from tests.style.distillation.conftest import write_images

GRAYS = [(40 * level, 40 * level, 40 * level) for level in range(1, 6)]
CONFIG = DistillConfig(num_crops=16)


def _made(teacher, contents, styles, config=CONFIG, **options) -> Crops:
    return Crops.joined(list(make_crops(teacher, contents, styles, config, **options)))


@pytest.fixture
def indexes(tmp_path):
    return write_images(tmp_path / "contents.parquet", GRAYS), write_images(tmp_path / "styles.parquet", GRAYS)


def test_half_of_the_crops_are_styles(teacher, indexes):
    crops = _made(teacher, [indexes[0]], [indexes[1]])
    assert crops.contents.shape == (16, 96, 96, 3)
    assert crops.thumbnails.shape == (16, 64, 64, 3)
    assert crops.is_style.sum() == 8


def test_a_code_is_the_teachers_of_that_very_crop(teacher, indexes):
    crops = _made(teacher, [indexes[0]], [indexes[1]])
    for images in (crops.contents, crops.thumbnails):
        np.testing.assert_allclose(images.mean(axis=(1, 2)) / 255, crops.codes[:, :3], atol=0.005)


def test_the_teacher_paints_some_of_the_styles(teacher, indexes):
    plain = _made(teacher, [indexes[0]], [indexes[1]], CONFIG.model_copy(update={"painted_share": 0.0}))
    painted = _made(teacher, [indexes[0]], [indexes[1]], CONFIG.model_copy(update={"painted_share": 0.5}))
    differs = (plain.contents != painted.contents).any(axis=(1, 2, 3))
    assert differs[plain.is_style].sum() == 4
    assert not differs[~plain.is_style].any()


def test_the_same_seed_gives_the_same_crops_and_another_gives_others(teacher, indexes):
    first, again = (_made(teacher, [indexes[0]], [indexes[1]]) for _ in range(2))
    other = _made(teacher, [indexes[0]], [indexes[1]], CONFIG.model_copy(update={"seed": 1}))
    assert np.array_equal(first.contents, again.contents)
    assert not np.array_equal(first.contents, other.contents)


def test_workers_share_the_crops_and_each_has_its_own(teacher, indexes):
    parts = [_made(teacher, [indexes[0]], [indexes[1]], rank=rank, world_size=3) for rank in range(3)]
    assert sum(len(part) for part in parts) == 16
    assert not np.array_equal(parts[0].codes[:2], parts[1].codes[:2])


def test_data_sets_of_one_kind_contribute_alike(teacher, tmp_path):
    small, large = write_images(tmp_path / "a.parquet", [(255, 0, 0)]), write_images(tmp_path / "b.parquet", [(0, 0, 255)] * 9)
    rows = [len(part) for part in make_crops(teacher, [small, large], [small], CONFIG)]
    assert rows == [8, 4, 4]


def test_excluded_rows_are_left_out(teacher, indexes, tmp_path):
    every = _made(teacher, [indexes[0]], [indexes[1]])
    some = _made(teacher, [indexes[0]], [indexes[1]], excluded=["styles.parquet#1"])
    assert 0 < (~some.is_style).sum() == (~every.is_style).sum()
    assert some.is_style.sum() < every.is_style.sum()


def test_bad_rows_are_reported_and_too_many_stop_it(teacher, indexes, tmp_path):
    bad: list[BadRow] = []
    _made(teacher, [write_images(tmp_path / "one.parquet", [*GRAYS, None])], [indexes[1]], on_bad=bad.append)
    assert [row.row for row in bad] == [5]
    with pytest.raises(TooManyBadRowsError):
        _made(teacher, [write_images(tmp_path / "many.parquet", [*GRAYS[:2], None, None])], [indexes[1]])


def test_a_data_set_without_usable_images_is_refused(teacher, indexes):
    with pytest.raises(UsageError, match="has no usable image"):
        _made(teacher, [indexes[0]], [indexes[1]], excluded=["0", "1", "2", "3", "4"])


def test_crops_come_back_from_their_bytes(crops):
    again = Crops.from_bytes(crops.to_bytes())
    for name in ("contents", "thumbnails", "codes", "is_style"):
        assert np.array_equal(getattr(again, name), getattr(crops, name))


def test_a_teacher_in_bfloat16_gives_float32_codes(teacher, indexes):
    teacher.predictor.to(torch.bfloat16)
    assert _made(teacher, [indexes[0]], [indexes[1]]).codes.dtype == np.float32
