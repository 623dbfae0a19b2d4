"""Features of whole data sets in this process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation import ImageChange, images
from ray_sassl.evaluation.datasets import LabeledImages
from ray_sassl.evaluation.extraction import ExtractionJob, Extractor, Preprocessing, joined
from ray_sassl.evaluation.workplace import LocalWorkplace
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import EvaluationView
from tests.orchestrate.conftest import NUM_ROWS, write_shards

PREPROCESSING = Preprocessing(EvaluationView(16), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


class Corner(nn.Module):
    """The upper left pixel, after normalization."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return x[:, :, 0, 0]


class Negative(ImageChange):
    @property
    def key(self) -> str:
        return "negative"

    def apply(self, images: np.ndarray, labels: np.ndarray, sample_id: np.ndarray) -> np.ndarray:
        assert len(images) == len(labels) == len(sample_id)
        return 255 - images


def _job(folder: Path, bad: tuple[int, ...] = (), **options) -> ExtractionJob:
    index = build_index(DataConfig(path=write_shards(folder, bad=bad), max_bad_fraction=1))
    return ExtractionJob(Corner(), index, PREPROCESSING, **options)


def _expected(job: ExtractionJob) -> np.ndarray:
    pixels = np.concatenate([images for images, _ in LabeledImages(job.index.config, 16, index=job.index)])[:, 0, 0]
    return (pixels / 255 - PREPROCESSING.pixel_mean) / PREPROCESSING.pixel_std


def test_features_are_those_of_the_images_in_their_order(tmp_path: Path):
    result = LocalWorkplace().features(job := _job(tmp_path))
    np.testing.assert_allclose(result.parts[0].features, _expected(job), atol=2e-3)
    assert result.parts[0].sample_id.tolist() == list(range(NUM_ROWS))
    assert result.parts[0].labels.tolist() == [row % 80 for row in range(NUM_ROWS)]
    assert result.bad == []


def test_bad_rows_are_left_out_and_reported(tmp_path: Path):
    bad = (*range(20, 40), 3)  # a whole row group, and one more
    result = LocalWorkplace().features(_job(tmp_path, bad=bad))
    assert sorted(row.sample_id for row in result.bad) == sorted(bad)
    assert result.parts[0].sample_id.tolist() == [row for row in range(NUM_ROWS) if row not in bad]


def test_changed_images_are_read_in_the_same_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = _job(tmp_path, changes=(None, Negative()))
    reads = []

    read_groups = images.read_groups
    monkeypatch.setattr(images, "read_groups", lambda index, groups: reads.extend(groups) or read_groups(index, groups))
    plain, negative = LocalWorkplace().features(job).parts
    assert sorted(reads) == list(range(job.index.num_groups))
    in_gray_levels = [part.features * PREPROCESSING.pixel_std + PREPROCESSING.pixel_mean for part in (plain, negative)]
    np.testing.assert_allclose(in_gray_levels[0] + in_gray_levels[1], 1.0, atol=2e-3)


def test_portions_may_come_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_sassl.evaluation.extraction.PORTION_ROWS", 40)
    job = _job(tmp_path)
    extractor = Extractor(job, torch.device("cpu"), 2)
    assert len(job.items) == 4
    shuffled = joined(job, [extractor.portion(job.items[item]) for item in (2, 0, 3, 1)])
    assert np.array_equal(shuffled.parts[0].features, LocalWorkplace().features(job).parts[0].features)


def test_the_encoder_is_left_as_it_is(tmp_path: Path):
    job = _job(tmp_path)
    job.encoder.train()
    LocalWorkplace().features(job)
    assert job.encoder.training


def test_no_image_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(UsageError, match=r"no labeled images to compute features of \(160 rows"):
        LocalWorkplace().features(_job(tmp_path, bad=tuple(range(NUM_ROWS))))
