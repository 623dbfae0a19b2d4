"""A study on an object store, here moto's S3 server on this machine: run, continued and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.config.files import from_yaml
from ray_sassl.files import storage
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.orchestrate.tune.search import search
from ray_sassl.study.record import read_record, read_trials
from ray_sassl.study.report import write_report
from tests.data.test_object_store import bucket  # noqa: F401 - a fixture
from tests.orchestrate.conftest import small_study
from tests.orchestrate.shared_cluster import stop

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_study_is_kept_and_continued_on_an_object_store(bucket: str, forking_ray: None, tmp_path: Path):  # noqa: F811 - the fixture
    stop()
    study = small_study(tmp_path, epochs=1)
    study_dir = storage.join(bucket, "studies", "remote")
    with ray_session("local", num_cpus=1):  # after the fixture, so that its processes know the credentials
        first = search(study, study_dir)
        more = search(study.model_copy(update={"num_trials": 2}), study_dir, resume=True)
    assert [trial.state for trial in more.records] == ["finished", "finished"]
    assert read_trials(study_dir) == more.records
    assert more.records[0] == first.records[0]
    assert from_yaml(storage.read_text(storage.join(study_dir, "best.yaml"))).name == "small_best"
    assert "2 of 2 trials" in storage.read_text(write_report(read_record(study_dir)))
    assert storage.exists(storage.join(study_dir, "trials", "0001", "summary.json"))
