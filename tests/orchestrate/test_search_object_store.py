"""A study on an object store, here moto's S3 server on this machine: run, continued and reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl import storage
from ray_sassl.config.files import from_yaml
from ray_sassl.orchestrate.search import search
from ray_sassl.orchestrate.session import ray_session
from ray_sassl.study.record import StudyConfig, read_trials
from ray_sassl.study.report import write_report
from ray_sassl.study.space import Float, SearchSpace
from tests.data.test_object_store import bucket  # noqa: F401 - a fixture
from tests.orchestrate.conftest import small_config, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_study_is_kept_and_continued_on_an_object_store(bucket: str, tmp_path: Path):  # noqa: F811 - the fixture
    study = StudyConfig(
        name="remote",
        base=small_config(write_shards(tmp_path), epochs=2, num_workers=0),
        space=SearchSpace(parameters=(Float(path="optim.base_lr", low=1e-3, high=0.3, log=True),)),
        objectives=("knn_top1",),
        searcher="random",
        scheduler="fifo",
        num_trials=1,
        max_concurrent=1,
    )
    study_dir = storage.join(bucket, "studies", "remote")
    with ray_session("local", num_cpus=1):  # after the fixture, so that its processes know the credentials
        first = search(study, study_dir)
        more = search(study.model_copy(update={"num_trials": 2}), study_dir, resume=True)
    assert [trial.state for trial in more.records] == ["finished", "finished"]
    assert read_trials(study_dir) == more.records
    assert more.records[0] == first.records[0]
    assert from_yaml(storage.read_text(storage.join(study_dir, "best.yaml"))).name == "remote_best"
    assert "2 of 2 trials" in storage.read_text(write_report(study_dir))
    assert storage.exists(storage.join(study_dir, "trials", "0001", "summary.json"))
