"""What scores during a run are measured on: validation images, never test images."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import OverrideError, apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.evaluation import datasets
from ray_sassl.evaluation.datasets import selection_images
from ray_sassl.evaluation.images import chosen_rows
from ray_sassl.evaluation.online import OnlineScores
from ray_sassl.evaluation.subject import RawPixels
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError

COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [128, 128, 128]])
NUM = 120


def _write(path: Path, seed: int, *, shuffled: bool = False, noisy: bool = False, num: int = NUM) -> None:
    """Plain images whose label is their color, or has nothing to do with it; or images of pure noise."""
    rng = np.random.default_rng(seed)
    colors = np.arange(num) % 4
    labels = rng.permutation(colors) if shuffled else colors
    encoded = []
    for color in colors:
        pixels = rng.integers(0, 256, (8, 8, 3)) if noisy else COLORS[color] + rng.normal(0, 8, (8, 8, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
        encoded.append(out.getvalue())
    pq.write_table(pa.table({"image": encoded, "label": pa.array(labels, pa.int32())}), path, row_group_size=16)


def _scores(tmp_path: Path, *overrides: str) -> OnlineScores:
    base = [f"evaluate.train={{path: {tmp_path}/train.parquet}}", "evaluate.size_px=8", "evaluate.online_rows=1000"]
    return OnlineScores(apply_overrides(load_experiment("demo_plain"), [*base, *overrides]), torch.device("cpu"))


def test_labels_that_only_the_test_set_could_teach_are_not_found(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0)
    _write(tmp_path / "validation.parquet", 1, shuffled=True)
    _write(tmp_path / "test.parquet", 2)
    own = [f"evaluate.{split}={{path: {tmp_path}/{split}.parquet}}" for split in ("validation", "test")]
    scores = _scores(tmp_path, *own, "evaluate.online=both")
    assert all(value < 0.5 for value in scores.validation(RawPixels()).values())
    assert scores.test(RawPixels()) == {"test_knn_top1": 1.0, "test_linear_top1": 1.0}


def test_validation_images_are_a_share_of_every_class_and_no_neighbors_of_themselves(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, shuffled=True, noisy=True)
    scores = _scores(tmp_path, "evaluate.validation=0.25", f"evaluate.test={{path: {tmp_path}/nowhere.parquet}}")
    train, validation = scores._selection
    assert train.wanted is not None
    assert validation.wanted is not None
    assert not (train.wanted & validation.wanted).any()
    assert (train.wanted | validation.wanted).all()
    assert np.bincount(validation.labels).tolist() == [8, 8, 8, 8]  # a quarter of thirty, rounded
    assert sum(len(labels) for _, labels in validation) == 32
    assert sum(len(labels) for _, labels in train) == NUM - 32
    # A kNN that had the validation images among its neighbors would know each by its pixels.
    assert scores.validation(RawPixels())["knn_top1"] < 0.6


def test_the_share_is_the_same_for_every_seed_of_a_run_and_another_for_another_validation_seed(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0)
    masks = [_scores(tmp_path, *words)._selection[1].wanted for words in ([], ["seed=5"], ["evaluate.validation_seed=1"])]
    first, second, other = (mask for mask in masks if mask is not None)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("keep_gb", [1.0, 2e-4, 0.0])
def test_the_second_scores_read_nothing_as_long_as_the_images_fit_decoded_or_encoded(tmp_path: Path, monkeypatch, keep_gb: float):
    _write(tmp_path / "train.parquet", 0)
    reads: list[int] = []
    monkeypatch.setattr(datasets, "chosen_rows", lambda index, group, *rest: (reads.append(group), chosen_rows(index, group, *rest))[1])
    scores = _scores(tmp_path, f"evaluate.keep_gb={keep_gb}", "evaluate.size_px=32")
    first = scores.validation(RawPixels())
    num_reads = len(reads)
    assert num_reads > NUM // 16
    assert scores.validation(RawPixels()) == first
    assert len(reads) == (2 * num_reads if keep_gb == 0 else num_reads)
    assert [images._decoded is None for images in scores._selection] == [keep_gb < 1] * 2


def test_a_limit_leaves_images_of_all_of_the_set(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, num=1600)
    config = _scores(tmp_path, "evaluate.online_rows=100", "evaluate.validation=0.5")._evaluate
    for images in selection_images(config):
        labels = np.concatenate([labels for _, labels in images])
        assert 60 <= len(labels) <= 100
        assert len(np.unique(labels)) == 4


def test_a_run_goes_to_its_end_without_its_test_images_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _write(tmp_path / "train.parquet", 0)
    scores = _scores(tmp_path, f"evaluate.test={{path: {tmp_path}/nowhere.parquet}}")
    assert scores.validation(RawPixels())["knn_top1"] == 1.0
    with caplog.at_level(logging.WARNING):
        assert scores.test(RawPixels()) == {}
    assert "nowhere.parquet does not exist" in caplog.text
    for none in ("evaluate.test=null", "evaluate.final_test=false"):
        assert _scores(tmp_path, none).test(RawPixels()) == {}


def test_a_set_of_one_image_a_class_cannot_be_split(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, num=4)
    with pytest.raises(UsageError, match=r"no class of two images, .*evaluate\.validation='\{path: FOLDER\}'"):
        _scores(tmp_path)._selection  # noqa: B018


def test_validation_is_a_share_a_path_or_a_data_set(tmp_path: Path):
    config = apply_overrides(load_experiment("demo_plain"), ["evaluate.validation=0.2"])
    assert (config.evaluate.validation, config.evaluate.own_validation) == (0.2, None)
    for value in ("labeled/val", "{path: labeled/val}"):
        config = apply_overrides(config, [f"evaluate.validation={value}"])
        assert config.evaluate.own_validation == DataConfig(path="labeled/val")
        assert from_yaml(to_yaml(config)) == config
    assert apply_overrides(config, ["evaluate.validation.path=other"]).evaluate.own_validation == DataConfig(path="other")
    with pytest.raises(OverrideError, match=r"a share of evaluate\.train between 0 and 1, or a path; not 1\.5"):
        apply_overrides(config, ["evaluate.validation=1.5"])
    with pytest.raises(OverrideError, match=r"no effect without evaluate\.train"):
        apply_overrides(config, ["evaluate.train=null"])


def test_a_config_from_before_there_were_validation_images_is_read(tmp_path: Path):
    config = load_experiment("demo_plain")
    lines = [line for line in to_yaml(config).splitlines() if not line.strip().startswith(("validation", "final_test"))]
    assert len(lines) == len(to_yaml(config).splitlines()) - 3
    old = from_yaml("\n".join(lines))
    assert isinstance(old, ExperimentConfig)
    assert old.evaluate.validation == 0.1
