"""Training a detector: it learns, a run is repeatable, and a stopped run continues."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.evaluation.detection.report import detections_table, evaluation_of
from ray_sassl.evaluation.detection.training import (
    DetectionJob,
    DetectionResult,
    _Images,
    _learning_rate,
    _training_batches,
    mirrored,
    run_detection,
)
from ray_sassl.evaluation.detection.voc import DetectionSet
from ray_sassl.process.errors import UsageError
from ray_sassl.train.context import Context, LocalContext
from tests.evaluation.detection.conftest import SMALL, small_job, write_data


def _trained(job: DetectionJob, context: Context) -> DetectionResult:
    """The result of a job that nobody stops."""
    found = run_detection(job, context)
    assert found is not None
    return found


def _same(first: DetectionResult, second: DetectionResult) -> None:
    assert first.history == second.history
    for one, other in zip(first.detections, second.detections, strict=True):
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "changes"), [("resnet18", {}), ("resnet20", {"architecture": "c4", "fpn_channels": 256, "hidden_size": 1024})]
)
def test_a_detector_learns_to_find_squares_and_discs(data, tmp_path, encoder, changes):
    job = small_job(data, tmp_path / "checkpoint.pt", encoder, steps=60, evaluate_every=60, **changes)
    result = _trained(job, LocalContext())
    evaluation = evaluation_of(job, result)
    assert evaluation.scores["start_AP50"].value < 0.1
    assert evaluation.scores["AP50"].value > 0.4
    assert evaluation.scores["AP50"].value > evaluation.scores["AP"].value
    assert set(evaluation.scores) == {"AP", "AP50", "AP75", "disc_AP", "square_AP", "start_AP50"}
    assert set(evaluation.figures) == {"boxes", "losses", "AP"}
    assert all(np.asarray(Image.open(io.BytesIO(content))).std() > 5 for content in evaluation.figures.values())
    assert evaluation.details["test"] == {"images": 8, "boxes": job.test.num_boxes, "boxes_without_area_dropped": 0, "images_left_out": 0}


@pytest.mark.slow
def test_boxes_that_belong_to_other_images_teach_nothing(data, tmp_path):
    job = small_job(data, tmp_path / "checkpoint.pt", "resnet18", steps=60)
    job = replace(job, train=_shuffled(job.train, 0), test=_shuffled(job.test, 1))
    measured = _trained(job, LocalContext()).history.measured[-1]
    # Not 0: all objects are of about the same size, and one stands in the left half of every image.
    assert measured["AP"] < 0.12


def _shuffled(part: DetectionSet, seed: int) -> DetectionSet:
    """The same images, each with the boxes of another."""
    order = np.random.default_rng(seed).permutation(len(part))
    return replace(part, truths=tuple(part.truths[row] for row in order))


def test_a_run_is_repeatable_and_a_stopped_run_continues_identically(data, tmp_path):
    class Stopped(Exception):
        pass

    class Stopping(LocalContext):
        def report(self, metrics):
            if metrics.get("step") == 6:
                raise Stopped

    def job(name):
        return small_job(data, tmp_path / name, steps=6, checkpoint_every=3)

    whole = _trained(job("whole.pt"), LocalContext())
    _same(_trained(job("again.pt"), LocalContext()), whole)
    with pytest.raises(Stopped):
        _trained(job("stopped.pt"), Stopping())
    reports = LocalContext()
    _same(_trained(job("stopped.pt"), reports), whole)
    assert [report["step"] for report in reports.reports if "step" in report] == [6]  # and not 3


class _Told(LocalContext):
    """A context that is told to stop once it has reported so much."""

    def __init__(self, is_enough: Callable[[dict[str, float]], bool]) -> None:
        super().__init__()
        self._is_enough, self._is_told = is_enough, False

    def report(self, metrics):
        super().report(metrics)
        self._is_told = self._is_told or self._is_enough(metrics)

    def stop_requested(self):
        return self._is_told


@pytest.mark.parametrize("where", ["a measurement", "training", "the last test"])
def test_a_stop_leaves_a_checkpoint_from_which_the_same_job_continues(where, data, tmp_path):
    def job(name):
        return small_job(data, tmp_path / name, steps=4, evaluate_every=2, checkpoint_every=1 if where == "training" else 100)

    whole = _trained(job("whole.pt"), LocalContext())

    def is_enough(report: dict[str, float]) -> bool:
        if where == "training":
            return report.get("step") == 3
        num_measured = sum("measured_step" in earlier for earlier in stopped.reports)
        return "tested" in report and num_measured == (1 if where == "a measurement" else 2)

    stopped = _Told(is_enough)
    assert run_detection(job("stopped.pt"), stopped) is None
    resumed = LocalContext()
    found = _trained(job("stopped.pt"), resumed)
    assert [entry["step"] for entry in found.history.measured] == [0, 2, 4]
    assert [entry["AP"] for entry in found.history.measured] == [entry["AP"] for entry in whole.history.measured]
    for one, other in zip(found.detections, whole.detections, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", b"no checkpoint at all"])
def test_a_damaged_checkpoint_is_a_sentence(content, data, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UsageError, match=r"is damaged, or no checkpoint .* Delete it to start again"):
        run_detection(small_job(data, tmp_path / "checkpoint.pt", steps=2), LocalContext())


def test_another_jobs_checkpoint_is_not_used(data, tmp_path, caplog):
    _trained(small_job(data, tmp_path / "checkpoint.pt", steps=2), LocalContext())
    other = _trained(small_job(data, tmp_path / "checkpoint.pt", steps=2, seed=1), LocalContext())
    assert "belongs to another detection job" in caplog.text
    assert len(other.history.losses) == 1


def test_every_image_is_seen_once_an_epoch_and_workers_share_a_batch(data, tmp_path):
    job = small_job(data, tmp_path / "checkpoint.pt", steps=6)  # 6 x 4 = 24 images: one epoch
    names = {tuple(map(tuple, truth.boxes.tolist())): row for row, truth in enumerate(job.train.truths)}
    assert len(names) == 24
    seen = []
    for rank in range(2):
        for images, targets in _training_batches(job, LocalContext(rank=rank, world_size=2), 0, _Images(job)):
            assert len(images) == 2
            for image, target in zip(images, targets, strict=True):
                either = (target["boxes"], mirrored(image, target["boxes"])[1])
                seen += [names[key] for boxes in either if (key := tuple(map(tuple, boxes.tolist()))) in names]
    assert sorted(seen) == list(range(24))


def test_a_mirrored_image_has_its_boxes_in_their_places():
    image = torch.arange(3 * 4 * 6).view(3, 4, 6)
    boxes = torch.tensor([[1.0, 0, 3, 2]])
    flipped, moved = mirrored(image, boxes)
    assert moved.tolist() == [[3, 0, 5, 2]]
    assert torch.equal(flipped[:, 0:2, 3:5], image[:, 0:2, 1:3].flip(2))
    back = mirrored(flipped, moved)
    assert torch.equal(back[0], image)
    assert torch.equal(back[1], boxes)


def test_the_learning_rate_rises_and_then_falls_in_steps():
    config = SMALL.model_copy(update={"steps": 1000, "warmup_steps": 100, "learning_rate": 0.02, "batch_size": 8})
    rates = [_learning_rate(step, config) for step in range(1000)]
    assert max(rates) == pytest.approx(0.01)  # half of the reference batch
    assert np.all(np.diff(rates[:101]) > 0)
    assert rates[749] == pytest.approx(0.01)
    assert rates[750] == pytest.approx(0.001)
    assert rates[999] == pytest.approx(0.0001)


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Four train images and two test images, one of each damaged."""
    folder = write_data(tmp_path / "voc", 4, 2)
    for name in ("trainval2", "test0"):
        (folder / f"JPEGImages/{name}.jpg").write_bytes(b"nothing")
    return folder


def test_damaged_images_are_left_out_and_counted(damaged, tmp_path):
    job, again = (small_job(damaged, tmp_path / "checkpoint.pt", steps=2, max_bad_fraction=0.5) for _ in range(2))
    result = _trained(job, LocalContext())
    assert {split: [Path(row.path).name for row in rows] for split, rows in result.bad.items()} == {
        "train": ["trainval2.jpg"],
        "test": ["test0.jpg"],
    }
    assert [Path(path).name for path in result.tested.paths] == ["test1.jpg"]
    assert len(result.detections) == 1
    evaluation = evaluation_of(job, result)
    assert evaluation.details["train"]["images_left_out"] == evaluation.details["test"]["images_left_out"] == 1
    assert evaluation.details["bad_images"][0]["reason"]
    assert detections_table(result).num_rows == len(result.detections[0].labels)
    resumed = _trained(again, LocalContext())  # from its last checkpoint, whose training is over
    _same(resumed, result)
    assert resumed.bad == result.bad


def test_the_next_image_of_the_epoch_takes_a_damaged_ones_place(damaged, tmp_path):
    job = small_job(damaged, tmp_path / "checkpoint.pt", steps=3, max_bad_fraction=0.5)
    whole = write_data(tmp_path / "whole", 4, 2)
    wanted = small_job(whole, tmp_path / "checkpoint.pt", steps=3)
    for (images, targets), (_, expected) in zip(
        _training_batches(job, LocalContext(), 0, _Images(job)), _training_batches(wanted, LocalContext(), 0, _Images(wanted)), strict=True
    ):
        assert len(images) == 4
        same = [torch.equal(one["boxes"], other["boxes"]) for one, other in zip(targets, expected, strict=True)]
        assert sum(same) == 3


def test_too_many_damaged_images_are_named(damaged, tmp_path):
    with pytest.raises(UsageError, match=r"1 of 4 rows \(25.00%\) cannot be used; max_bad_fraction allows 1.00%[\s\S]*trainval2.jpg: "):
        _trained(small_job(damaged, tmp_path / "checkpoint.pt", steps=2), LocalContext())


def test_a_split_without_a_single_image_that_can_be_decoded_is_refused(damaged, tmp_path):
    for image in (damaged / "JPEGImages").glob("test*"):
        image.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="none of the 2 test images can be decoded"):
        _trained(small_job(damaged, tmp_path / "checkpoint.pt", steps=2, max_bad_fraction=1), LocalContext())


def test_a_batch_that_cannot_be_shared_is_refused(data, tmp_path):
    with pytest.raises(UsageError, match="cannot be divided evenly among 3 workers"):
        _trained(small_job(data, tmp_path / "checkpoint.pt"), LocalContext(world_size=3))


def test_a_run_that_diverges_is_stopped(data, tmp_path):
    with pytest.raises(UsageError, match="has diverged by step 6"):
        _trained(small_job(data, tmp_path / "checkpoint.pt", steps=6, learning_rate=1e9), LocalContext())


def test_detections_are_kept_by_image(data, tmp_path):
    job = small_job(data, tmp_path / "checkpoint.pt", steps=2)
    result = _trained(job, LocalContext())
    table = detections_table(result)
    assert table.num_rows == sum(len(one.labels) for one in result.detections)
    assert table.column_names == ["image", "label", "score", "left", "top", "right", "bottom"]
    pq.write_table(table, tmp_path / "found.parquet")
