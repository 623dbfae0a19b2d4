"""Features on a pool of actors."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index
from ray_sassl.evaluation import Task
from ray_sassl.evaluation.extraction import CropJob, ExtractionJob, Preprocessing
from ray_sassl.evaluation.protocols.finetune import Config as FineTune
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.subject import EncoderEvaluation
from ray_sassl.evaluation.workplace import LocalWorkplace
from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig, actor_pool, in_order, spread
from ray_sassl.orchestrate.batch.features import EvaluationPool, evaluation_pool
from ray_sassl.process.errors import UsageError
from ray_sassl.views.center_crop import EvaluationView
from tests.orchestrate.conftest import small_config, write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def job(tmp_path: Path) -> ExtractionJob:
    index = build_index(DataConfig(path=write_shards(tmp_path, bad=(7,)), max_bad_fraction=1))
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name="resnet20"))[0]
    return ExtractionJob(encoder, index, Preprocessing(EvaluationView(16), (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def pool(ray_cluster) -> Iterator[EvaluationPool]:
    """Two actors for all tests: each imports torch, which takes longer than what they are asked for."""
    with evaluation_pool(ActorPoolConfig(num_actors=2, num_cpus=0.5)) as pool:
        yield pool


def test_other_data_sets_are_evaluated_side_by_side_as_in_one_process(pool: EvaluationPool, tmp_path: Path):
    (tmp_path / "test").mkdir()
    data, test = (DataConfig(path=write_shards(folder, bad=(7,)), max_bad_fraction=1) for folder in (tmp_path, tmp_path / "test"))
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name="resnet20"))[0]
    protocols = (Knn(k=3), FineTune(epochs=1, batch_size=64), Knn(k=1))
    job = EncoderEvaluation(encoder, small_config(str(tmp_path)), tuple(Task(protocol, data, test) for protocol in protocols))
    here = LocalWorkplace().evaluate(job)
    assert not pool._workers  # this is the file's first test
    pool.features(ExtractionJob(encoder, build_index(data), Preprocessing(EvaluationView(16), (0.5,) * 3, (0.25,) * 3)))
    assert len(pool._workers) == 1  # one portion is work for one
    there = pool.evaluate(job)
    assert len(pool._workers) == 2
    with pytest.raises(UsageError, match="nothing does not exist"):
        pool.evaluate(EncoderEvaluation(encoder, job.config, (Task(Knn(), data, DataConfig(path="nothing")),)))
    for one, other in zip(here, there, strict=True):
        assert one.scores["top1"].value == pytest.approx(other.scores["top1"].value, abs=0.02)
        assert other.details["bad_images"] == 2
    assert there[0].predictions is not None
    assert there[0].predictions.sample_id.tolist() == [row for row in range(160) if row != 7]


def test_actors_find_what_one_process_finds_and_serve_several_jobs(pool: EvaluationPool, job: ExtractionJob, monkeypatch):
    monkeypatch.setattr("ray_sassl.evaluation.extraction.PORTION_ROWS", 40)
    here = LocalWorkplace().features(job)
    there = pool.features(job)
    other = pool.features(ExtractionJob(torch.nn.Flatten(), job.index, job.preprocessing))
    np.testing.assert_allclose(there.parts[0].features, here.parts[0].features, atol=1e-5)
    assert np.array_equal(there.parts[0].labels, here.parts[0].labels)
    assert np.array_equal(there.parts[0].sample_id, here.parts[0].sample_id)
    assert [row.sample_id for row in there.bad] == [7]
    assert other.parts[0].features.shape == (159, 3 * 16 * 16)


def test_crops_encoded_by_actors_are_those_of_one_process_in_the_same_batches(pool: EvaluationPool, job: ExtractionJob, monkeypatch):
    monkeypatch.setattr("ray_sassl.evaluation.crops._PORTION_CROPS", 24)
    sample_id = np.append(np.setdiff1d(np.arange(0, 160, 2), [8]), 7)  # 7 cannot be decoded
    crops = CropJob(job.encoder, job.index, job.preprocessing, sample_id, epochs=2, batch_size=32, seed=3)
    bad: list[BadRow] = []
    here = list(LocalWorkplace().encode_crops(crops, lambda rows: None))
    there = list(pool.encode_crops(crops, bad.extend))
    assert [len(labels) for _, labels in there] == [32, 32, 15] * 2
    for one, other in zip(here, there, strict=True):
        np.testing.assert_allclose(one[0], other[0], atol=1e-5)
        assert one[1].tolist() == other[1].tolist()
    assert [row.sample_id for row in bad] == [7, 7]  # in each epoch; the data set's quarantine counts it once


def test_actors_that_the_cluster_has_no_room_for_are_not_waited_for(pool: EvaluationPool):
    class Echo:
        def echo(self, item: int) -> int:
            return item

    ray.get([worker.__ray_ready__.remote() for worker in pool._workers_for(2)])  # half of the cluster's two CPUs
    with actor_pool(Echo, (), ActorPoolConfig(num_actors=2, num_cpus=0.6), 8) as actors:
        assert len(actors) == 2
        found = spread(actors, lambda actor, item: actor.echo.remote(item), range(8))
        assert sorted(result for _, result in found) == list(range(8))
        found = in_order(actors, lambda actor, item: actor.echo.remote(item), range(8))
        assert [result for _, result in found] == list(range(8))
