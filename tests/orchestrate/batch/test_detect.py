"""Detection on Ray Train workers."""

from pathlib import Path

import numpy as np
import pytest

from ray_sassl.evaluation.detection.training import run_detection
from ray_sassl.orchestrate.batch.detect import detect_on_ray
from ray_sassl.orchestrate.pretraining.train_job import Workers
from ray_sassl.process.errors import UsageError
from ray_sassl.train.context import LocalContext
from tests.evaluation.detection.conftest import small_job, write_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("voc"))


def test_one_worker_finds_what_one_process_finds(ray_cluster: None, data: Path, tmp_path: Path):
    options = {"steps": 3, "checkpoint_every": 3}
    here = run_detection(small_job(data, tmp_path / "here.pt", **options), LocalContext())
    reports: list[dict[str, float]] = []
    there = detect_on_ray(small_job(data, tmp_path / "there.pt", **options), Workers(num_cpus=0.5), watch=reports.append)
    assert there.history.losses[-1]["loss"] == pytest.approx(here.history.losses[-1]["loss"], rel=1e-4)
    for one, other in zip(there.detections, here.detections, strict=True):
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-3)
    assert [report["step"] for report in reports if "step" in report] == [3]
    assert sum(report.get("tested", 0) for report in reports) == 8


def test_two_workers_share_the_steps_and_the_test_images(ray_cluster: None, data: Path, tmp_path: Path):
    reports: list[dict[str, float]] = []
    job = small_job(data, tmp_path / "checkpoint.pt", steps=4, evaluate_every=4)
    result = detect_on_ray(job, Workers(2, 0.5), watch=reports.append)
    assert [report["step"] for report in reports if "step" in report] == [4]
    assert sum(report.get("tested", 0) for report in reports) == 16
    assert len(result.detections) == 8
    assert [entry["step"] for entry in result.history.measured] == [0, 4]
    assert result.history.losses[-1]["step"] == 4
    assert (tmp_path / "checkpoint.pt").exists()


def test_what_the_user_must_mend_ends_the_job_with_its_reason(ray_cluster: None, tmp_path: Path):
    folder = write_data(tmp_path / "voc", 4, 2)
    for image in (folder / "JPEGImages").glob("trainval*"):
        image.write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"cannot be used; max_bad_fraction allows 1\.00%"):
        detect_on_ray(small_job(folder, tmp_path / "checkpoint.pt", steps=2), Workers(2, 0.5))


def test_a_cluster_that_is_too_small_is_named(ray_cluster: None, data: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="the job needs 5 CPUs and the cluster can offer 2"):
        detect_on_ray(small_job(data, tmp_path / "checkpoint.pt"), Workers(5))
