"""Features on a pool of actors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.data import DataConfig
from ray_sassl.data.index import build_index
from ray_sassl.extraction import ExtractionJob, Preprocessing, extract_here
from ray_sassl.orchestrate.actor_pool import ActorPoolConfig
from ray_sassl.orchestrate.feature_jobs import feature_pool
from tests.orchestrate.conftest import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def job(tmp_path: Path) -> ExtractionJob:
    index = build_index(DataConfig(path=write_shards(tmp_path, bad=(7,)), max_bad_fraction=1))
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name="resnet20"))[0]
    return ExtractionJob(encoder, index, Preprocessing(16, (0.5,) * 3, (0.25,) * 3))


def test_actors_find_what_one_process_finds_and_serve_several_jobs(ray_cluster, job, monkeypatch):
    monkeypatch.setattr("ray_sassl.extraction.PORTION_ROWS", 40)
    here = extract_here(job)
    with feature_pool(ActorPoolConfig(num_actors=2, num_cpus=0.5), show_progress=False) as extract:
        there = extract(job)
        other = extract(ExtractionJob(torch.nn.Flatten(), job.index, job.preprocessing))
    np.testing.assert_allclose(there.parts[0].features, here.parts[0].features, atol=1e-5)
    assert np.array_equal(there.parts[0].labels, here.parts[0].labels)
    assert np.array_equal(there.parts[0].sample_id, here.parts[0].sample_id)
    assert [row.sample_id for row in there.bad] == [7]
    assert other.parts[0].features.shape == (159, 3 * 16 * 16)
