"""Scores of encoders on labelled images."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import TooManyBadRowsError
from ray_sassl.evaluate.knn import Config as Knn
from ray_sassl.experiments import load_experiment
from ray_sassl.plugins import UsageError
from ray_sassl.scoring import LabelledImages, RawPixels, load_evaluation_data, online_knn, score, untrained_backbone

CPU = torch.device("cpu")
COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])


def _write(path: Path, num_rows: int, num_bad: int = 0, labelled: bool = True) -> None:
    """A shard of plain images with a little noise, whose label is their colour."""
    rng = np.random.default_rng(num_rows)
    images, labels = [], np.arange(num_rows) % 3
    for row in range(num_rows):
        out = io.BytesIO()
        pixels = (COLOURS[labels[row]] + rng.normal(0, 12, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        images.append(b"no image" if row < num_bad else out.getvalue())
    columns = {"image": images} | ({"label": pa.array(labels, pa.int32())} if labelled else {})
    pq.write_table(pa.table(columns), path, row_group_size=40)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """An experiment with 120 images of three colours to fit on, and 102 to measure on."""
    _write(tmp_path / "train.parquet", 120)
    _write(tmp_path / "test.parquet", 102)
    splits = [f"evaluate.{split}={{path: {tmp_path}/{split}.parquet}}" for split in ("train", "test")]
    return apply_overrides(load_experiment("demo_plain"), [*splits, "evaluate.size_px=8"])


def test_raw_pixels_tell_plain_colours_apart(config):
    data = load_evaluation_data(config)
    assert data.chance == pytest.approx(1 / 3)
    assert data.num_bad == 0
    assert score(config, RawPixels(), data, [Knn()])[0]["top1"] == 1.0


def test_the_online_score_decodes_its_images_once(config, monkeypatch: pytest.MonkeyPatch):
    scorer = online_knn(config, CPU)
    assert scorer is not None
    first = scorer(RawPixels())
    assert first["knn_top1"] == 1.0
    monkeypatch.setattr("ray_sassl.scoring.labelled_images", _refuse)
    assert scorer(RawPixels()) == first


def _refuse(*args: object) -> None:
    raise AssertionError("the data were read again")


def test_scoring_leaves_the_encoder_in_training_mode(config):
    scorer = online_knn(config, CPU)
    assert scorer is not None
    backbone = untrained_backbone(config).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    scorer(backbone)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_without_labelled_data_there_is_no_online_score(config):
    assert online_knn(apply_overrides(config, ["evaluate.test=null"]), CPU) is None


def test_evaluation_without_labelled_data_says_what_to_set(config, tmp_path):
    with pytest.raises(UsageError, match=r"evaluate\.test is not set; say which labelled images to use: 'evaluate\.test=\{path: FOLDER\}'"):
        load_evaluation_data(apply_overrides(config, ["evaluate.test=null"]))
    _write(tmp_path / "plain.parquet", 10, labelled=False)
    with pytest.raises(UsageError, match="label"):
        load_evaluation_data(apply_overrides(config, [f"evaluate.test.path={tmp_path}/plain.parquet"]))


def test_bad_evaluation_images_are_left_out_and_counted(config, tmp_path):
    _write(tmp_path / "test.parquet", 102, num_bad=1)
    data = load_evaluation_data(config)
    assert score(config, RawPixels(), data, [Knn()])[0]["top1"] == 1.0
    assert data.num_bad == 1


def test_too_many_bad_evaluation_images_are_refused(config, tmp_path):
    _write(tmp_path / "test.parquet", 102, num_bad=5)
    with pytest.raises(TooManyBadRowsError):
        score(config, RawPixels(), load_evaluation_data(config), [Knn()])


def test_what_is_small_is_decoded_once_and_what_is_large_at_each_pass(config, tmp_path, monkeypatch: pytest.MonkeyPatch):
    for limit_bytes, is_same in ((2**20, True), (100, False)):
        monkeypatch.setattr("ray_sassl.scoring._KEPT_BYTES", limit_bytes)
        images = LabelledImages(DataConfig(path=f"{tmp_path}/test.parquet"), 8)
        first, second = list(images), list(images)
        assert (first[0][0] is second[0][0]) is is_same
        assert all(np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))
