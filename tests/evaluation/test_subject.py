"""Scores of encoders on labeled images."""

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
from ray_sassl.evaluation import Task, crops
from ray_sassl.evaluation.corruptions import Corrupted
from ray_sassl.evaluation.datasets import LabeledImages, load_evaluation_data
from ray_sassl.evaluation.extraction import Extracted, ExtractionJob
from ray_sassl.evaluation.online import online_scores, warn_unseen_classes
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.robustness import Config as Robustness
from ray_sassl.evaluation.store import FeatureStore
from ray_sassl.evaluation.subject import EncoderSubject, RawPixels, score, untrained_backbone
from ray_sassl.evaluation.workplace import LocalWorkplace, Workplace
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.train.context import LocalContext

COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])


def _write(path: Path, num_rows: int, num_bad: int = 0, labeled: bool = True) -> None:
    """A shard of plain images with a little noise, whose label is their color."""
    rng = np.random.default_rng(num_rows)
    images, labels = [], np.arange(num_rows) % 3
    for row in range(num_rows):
        out = io.BytesIO()
        pixels = (COLORS[labels[row]] + rng.normal(0, 12, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        images.append(b"no image" if row < num_bad else out.getvalue())
    columns = {"image": images} | ({"label": pa.array(labels, pa.int32())} if labeled else {})
    pq.write_table(pa.table(columns), path, row_group_size=40)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """An experiment with 120 images of three colors to fit on, and 102 to measure on."""
    _write(tmp_path / "train.parquet", 120)
    _write(tmp_path / "test.parquet", 102)
    splits = [f"evaluate.{split}={{path: {tmp_path}/{split}.parquet}}" for split in ("train", "test")]
    return apply_overrides(load_experiment("demo_plain"), [*splits, "evaluate.size_px=8"])


def test_raw_pixels_tell_plain_colors_apart(config):
    data = load_evaluation_data(config)
    assert data.chance == pytest.approx(1 / 3)
    assert data.num_bad == 0
    assert score(config, RawPixels(), data, [Knn()])[0]["top1"] == 1.0


def test_the_online_score_decodes_its_images_once(config, monkeypatch: pytest.MonkeyPatch):
    scorer = online_scores(config, LocalContext())
    assert scorer is not None
    first = scorer.validation(RawPixels())
    assert first["knn_top1"] == 1.0
    monkeypatch.setattr("ray_sassl.evaluation.datasets.decoded", _refuse)
    assert scorer.validation(RawPixels()) == first


def test_what_is_scored_during_a_run_is_a_choice(config):
    both = online_scores(apply_overrides(config, ["evaluate.online=both"]), LocalContext())
    assert both is not None
    assert both.validation(RawPixels()) == {"knn_top1": 1.0, "linear_top1": 1.0}
    assert both.test(RawPixels()) == {"test_knn_top1": 1.0, "test_linear_top1": 1.0}
    linear = online_scores(apply_overrides(config, ["evaluate.online=linear"]), LocalContext())
    assert linear is not None
    assert set(linear.validation(RawPixels())) == {"linear_top1"}


def _refuse(*args: object) -> None:
    raise AssertionError("the data were read again")


def test_scoring_leaves_the_encoder_in_training_mode(config):
    scorer = online_scores(config, LocalContext())
    assert scorer is not None
    backbone = untrained_backbone(config).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    scorer.validation(backbone)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_classes_that_the_images_scored_on_during_a_run_cannot_tell_are_named(caplog: pytest.LogCaptureFixture):
    warn_unseen_classes(np.arange(100), np.arange(102))
    assert not caplog.text
    for _ in range(2):
        warn_unseen_classes(np.arange(10), np.arange(40))
    assert caplog.text.count("75% of the images on which the run is scored") == 1


def test_without_labeled_data_there_is_no_online_score(config):
    assert online_scores(apply_overrides(config, ["evaluate.train=null"]), LocalContext()) is None


def test_evaluation_without_labeled_data_says_what_to_set(config, tmp_path):
    with pytest.raises(UsageError, match=r"evaluate\.test is not set; say which labeled images to use: 'evaluate\.test=\{path: FOLDER\}'"):
        load_evaluation_data(apply_overrides(config, ["evaluate.test=null"]))
    _write(tmp_path / "plain.parquet", 10, labeled=False)
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


def test_what_is_small_is_decoded_once_and_what_is_large_at_each_pass(config, tmp_path):
    for limit_bytes, is_same in ((2**20, True), (100, False)):
        images = LabeledImages(DataConfig(path=f"{tmp_path}/test.parquet"), 8, keep_bytes=limit_bytes)
        first, second = list(images), list(images)
        assert (first[0][0] is second[0][0]) is is_same
        assert all(np.array_equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True))


class _Closed(LocalWorkplace):
    """Computes nothing."""

    def features(self, job: ExtractionJob) -> Extracted:
        raise AssertionError("the data were read again")


def _subject(config: ExperimentConfig, folder: Path, workplace: Workplace | None = None, seed: int = 0) -> EncoderSubject:
    encoder = untrained_backbone(apply_overrides(config, [f"seed={seed}"]))
    return EncoderSubject(encoder, config, load_evaluation_data(config), workplace, FeatureStore(str(folder), {}))


def test_features_are_computed_once_for_an_encoder_and_a_data_set(config, tmp_path):
    first = _subject(config, tmp_path / "kept").features("test")
    again = _subject(config, tmp_path / "kept", _Closed()).features("test")
    assert all(np.array_equal(getattr(first, name), getattr(again, name)) for name in ("features", "labels", "sample_id"))
    for changed, seed in (([], 1), (["evaluate.size_px=12"], 0), (["train.pixel_std=[0.3, 0.2, 0.2]"], 0)):
        with pytest.raises(AssertionError, match="read again"):
            _subject(apply_overrides(config, changed), tmp_path / "kept", _Closed(), seed).features("test")


def test_features_of_other_images_under_the_same_name_are_not_used(config, tmp_path):
    _subject(config, tmp_path / "kept").features("test")
    _write(tmp_path / "test.parquet", 99)
    assert len(_subject(config, tmp_path / "kept").features("test").labels) == 99


def test_bad_images_are_counted_with_saved_features_too(config, tmp_path):
    _write(tmp_path / "test.parquet", 102, num_bad=1)
    for _ in range(2):
        subject = _subject(config, tmp_path / "kept")
        assert len(subject.features("test").labels) == 101
        assert subject._data.num_bad == 1


def test_images_come_by_their_ids(config, tmp_path):
    subject = _subject(config, tmp_path / "kept")
    ids = np.array([101, 0, 57, 1])
    colors = subject.images("test", ids).mean((1, 2))
    assert np.abs(colors - COLORS[ids % 3]).max() < 12


def test_training_views_show_every_wanted_image_once_an_epoch(config, tmp_path):
    subject = _subject(config, tmp_path / "kept")
    wanted = np.arange(0, 120, 4)
    batches = list(subject.training_views(wanted, epochs=2, batch_size=8, seed=0))
    assert [len(labels) for _, labels in batches] == [8, 8, 8, 6] * 2
    first, second = (np.concatenate([labels for _, labels in part]) for part in (batches[:4], batches[4:]))
    assert np.bincount(first).tolist() == np.bincount(second).tolist() == [10, 10, 10]
    assert first.tolist() != second.tolist()
    for images, labels in batches:
        assert np.abs(images.mean((1, 2)) - COLORS[labels]).max() < 15


def test_rows_that_fit_are_read_once_and_shuffled_all_together(config, tmp_path, monkeypatch: pytest.MonkeyPatch):
    table = pq.read_table(tmp_path / "train.parquet")
    order = np.argsort(np.arange(120) % 3, kind="stable")
    pq.write_table(table.take(order), tmp_path / "train.parquet", row_group_size=8)  # as a folder by classes lies
    config = apply_overrides(config, ["evaluate.train.shuffle_window=8"])
    asked = []
    real, real_runs = crops.read_groups, crops.read_runs
    monkeypatch.setattr(crops, "read_groups", lambda index, groups: asked.extend(groups) or real(index, groups))
    monkeypatch.setattr(crops, "read_runs", lambda index, first, rows: asked.extend(first // 8) or real_runs(index, first, rows))
    wanted = np.concatenate([np.arange(0, 16), np.arange(40, 56), np.arange(80, 96)])
    kept = list(_subject(config, tmp_path / "kept").training_views(wanted, epochs=2, batch_size=12, seed=0))
    assert sorted(asked) == [0, 1, 5, 6, 10, 11]
    assert all(len(np.unique(labels)) == 3 for _, labels in kept)
    asked.clear()
    monkeypatch.setattr(crops, "_KEPT_ENCODED_BYTES", 0)
    read_anew = list(_subject(config, tmp_path / "kept").training_views(wanted, epochs=2, batch_size=12, seed=0))
    assert sorted(asked) == sorted([0, 1, 5, 6, 10, 11] * 2)
    for batches in (kept, read_anew):
        assert [len(labels) for _, labels in batches] == [12] * 8
        assert np.bincount(np.concatenate([labels for _, labels in batches])).tolist() == [32, 32, 32]
    means = [np.sort(np.concatenate([images.mean((1, 2, 3)) for images, _ in batches])) for batches in (kept, read_anew)]
    np.testing.assert_array_equal(means[0], means[1])  # an image's crop follows from the seed, its id and the epoch alone


def test_outputs_are_those_of_another_network_on_the_test_images(config, tmp_path):
    outputs = _subject(config, tmp_path / "kept").outputs(RawPixels())
    assert outputs.features.shape == (102, 3 * 8 * 8)
    assert outputs.labels.tolist() == (np.arange(102) % 3).tolist()


def test_robustness_of_raw_pixels_is_found_in_one_reading_of_the_test_images(config):
    subject = EncoderSubject(RawPixels(), config, load_evaluation_data(config))
    options = {"corruptions": ("contrast", "jpeg"), "severities": (1, 5), "stylize": ColorStatistics(), "render_px": 0}
    scores = Robustness(**options).build().evaluate(subject).scores
    assert scores["clean_top1"].value == scores["jpeg_top1"].value == 1.0
    assert scores["shape_share"].value < 0.1  # images of one color have no shape


def test_outputs_of_changed_images_come_in_the_order_of_the_changes(config):
    subject = EncoderSubject(RawPixels(), config, load_evaluation_data(config))
    pixels = torch.nn.Flatten()
    clean, darker = subject.changed_outputs(pixels, [Corrupted("contrast", 0, 0), Corrupted("contrast", 5, 0)])
    np.testing.assert_array_equal(clean.features, subject.outputs(pixels).features)
    assert np.array_equal(clean.sample_id, darker.sample_id)
    assert darker.features.std(1).mean() < clean.features.std(1).mean()


def test_a_class_without_train_images_is_refused_before_anything_is_read(config, tmp_path):
    table = pq.read_table(tmp_path / "test.parquet")
    pq.write_table(table.set_column(1, "label", pa.array([9] * 102, pa.int32())), tmp_path / "test.parquet")
    with pytest.raises(UsageError, match="class 9 has test images and no train images"):
        load_evaluation_data(config)


def test_folders_with_other_classes_are_refused(config, tmp_path):
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "frog"))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / split / name / "0.png")
    folders = [f"evaluate.{split}={{path: {tmp_path}/{split}}}" for split in ("train", "test")]
    with pytest.raises(UsageError, match="mean different things; in one only: dog, frog"):
        load_evaluation_data(apply_overrides(config, folders))


def test_labels_come_with_the_ids_of_labeled_images_and_nothing_is_decoded(config, tmp_path):
    table = pq.read_table(tmp_path / "train.parquet")
    labels = [None if row % 10 == 0 else row % 3 for row in range(120)]
    pq.write_table(table.set_column(1, "label", pa.array(labels, pa.int32())), tmp_path / "train.parquet")
    sample_id, found = _subject(config, tmp_path / "kept", _Closed()).labels("train")
    assert sample_id.tolist() == [row for row in range(120) if row % 10]
    assert found.tolist() == [row % 3 for row in range(120) if row % 10]


def test_names_are_those_of_the_labeled_images(config, tmp_path):
    with pytest.raises(UsageError, match="have no names: Parquet files need a column 'key'"):
        _subject(config, tmp_path / "kept").names("train")
    table = pq.read_table(tmp_path / "train.parquet")
    pq.write_table(table.append_column("key", pa.array([f"{row}.png" for row in range(120)])), tmp_path / "train.parquet")
    assert _subject(config, tmp_path / "kept").names("train") == [f"{row}.png" for row in range(120)]


def test_tasks_are_evaluated_on_their_own_images_without_any_of_the_runs(config, tmp_path):
    _write(tmp_path / "other.parquet", 60, num_bad=1)
    whole = DataConfig(path=f"{tmp_path}/other.parquet", max_bad_fraction=0.1)
    task = Task(Knn(k=3), DataConfig(path=f"{tmp_path}/train.parquet"), whole)
    subject = EncoderSubject(RawPixels(), config, None)
    found = subject.evaluate([task, task])
    assert [evaluation.scores["top1"].value for evaluation in found] == [1.0, 1.0]
    assert found[0].predictions is not None
    assert len(found[0].predictions.labels) == 59
    assert found[0].details["bad_images"] == 1
    with pytest.raises(UsageError, match="which are not set"):
        subject.features("test")


def test_a_bad_train_image_is_left_out_of_every_epoch_and_counted_once(config, tmp_path):
    _write(tmp_path / "train.parquet", 120, num_bad=1)
    subject = _subject(config, tmp_path / "kept")
    labels = np.concatenate([labels for _, labels in subject.training_views(np.arange(120), epochs=3, batch_size=16, seed=0)])
    assert len(labels) == 3 * 119
    assert subject._data.num_bad == 1


def test_an_image_that_cannot_be_decoded_is_black(config, tmp_path):
    _write(tmp_path / "train.parquet", 120, num_bad=1)
    images = _subject(config, tmp_path / "kept").images("train", np.array([0, 1]))
    assert not images[0].any()
    assert images[1].any()
