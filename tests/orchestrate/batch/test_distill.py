"""Distillation as a job: it ends in a stylizer, goes on after a stop, and shares its work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ray_sassl.data import DataConfig
from ray_sassl.orchestrate.batch.distill import distill
from ray_sassl.orchestrate.pretraining.train_job import Workers
from ray_sassl.process.errors import UsageError
from ray_sassl.style.distillation import DistillConfig
from ray_sassl.style.stylizers.swift import Config, read_student
from tests.orchestrate.conftest import write_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CONFIG = DistillConfig(num_crops=12, steps=4, batch_size=4, sizes_px=(32,), precision="float32")


@pytest.fixture(autouse=True)
def _weights(weights_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))


@pytest.fixture
def data(tmp_path: Path) -> list[DataConfig]:
    return [DataConfig(path=write_shards(tmp_path, num_rows=20), label_column=None)]


def _distilled(
    data: list[DataConfig], tmp_path: Path, name: str, config: DistillConfig = CONFIG, *, num_workers: int = 1, **options
) -> dict[str, torch.Tensor]:
    out = tmp_path / f"{name}.safetensors"
    workers = Workers(num_workers, 0.5)
    result = distill(data, data, str(out), config, work_dir=str(tmp_path / f"{name}.work"), workers=workers, show_progress=False, **options)
    assert result.steps == config.steps
    assert result.metrics["step"] == config.steps
    assert result.metrics["loss"] > 0
    return load_file(out)


def test_the_result_is_a_stylizer_that_says_how_it_was_made(ray_cluster: None, data, tmp_path: Path):
    _distilled(data, tmp_path, "student")
    path = tmp_path / "student.safetensors"
    stylizer = Config(weights=str(path)).build(torch.device("cpu"))
    images = torch.rand(2, 3, 32, 32)
    assert stylizer.render(images, stylizer.embed(images)).shape == images.shape
    _, facts = read_student(path)
    assert facts["code_space"] == stylizer.bundle_id
    assert json.loads(facts["distillation"])["steps"] == 4


def test_a_job_goes_on_from_its_checkpoint_as_if_it_had_not_stopped(ray_cluster: None, data, tmp_path: Path, monkeypatch):
    whole = _distilled(data, tmp_path, "whole", checkpoint_every=2)
    _distilled(data, tmp_path, "again", checkpoint_every=2)
    # Back to where it would be had it been stopped after two steps.
    from ray_sassl.orchestrate.batch.distill import _save_checkpoint
    from ray_sassl.style.distillation.crops import Crops
    from ray_sassl.style.distillation.training import Distiller
    from ray_sassl.style.stylizers.magenta import WEIGHTS, build_networks
    from ray_sassl.style.weights import load_weights

    work = tmp_path / "again.work"
    crops = Crops.from_bytes((work / "crops-0-of-1.safetensors").read_bytes())
    _, transformer = build_networks(load_weights(WEIGHTS))
    distiller = Distiller(transformer.requires_grad_(False), crops.codes, CONFIG)
    for _ in range(2):
        distiller.train_step(crops)
    _save_checkpoint(str(work), distiller)
    resumed = _distilled(data, tmp_path, "again", checkpoint_every=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_two_workers_train_one_student(ray_cluster: None, data, tmp_path: Path):
    state = _distilled(data, tmp_path, "pair", num_workers=2)
    assert all(torch.isfinite(value.float()).all() for value in state.values())
    assert (tmp_path / "pair.work" / "crops-1-of-2.safetensors").exists()


def test_the_folder_of_another_job_is_refused(ray_cluster: None, data, tmp_path: Path):
    _distilled(data, tmp_path, "one")
    with pytest.raises(UsageError, match="another job, with other config"):
        _distilled(data, tmp_path, "one", CONFIG.model_copy(update={"steps": 5}))


def test_data_without_images_ends_the_job_with_the_reason(ray_cluster: None, tmp_path: Path):
    bad = [DataConfig(path=write_shards(tmp_path, num_rows=20, bad=tuple(range(20))), label_column=None)]
    with pytest.raises(UsageError, match="cannot be used"):
        _distilled(bad, tmp_path, "bad")


def test_more_workers_than_the_cluster_has_are_refused(ray_cluster: None, data, tmp_path: Path):
    with pytest.raises(UsageError, match="the job needs 8 CPUs and the cluster can offer 2"):
        distill(data, data, str(tmp_path / "x"), CONFIG, work_dir=str(tmp_path / "w"), workers=Workers(4, 2), show_progress=False)


def test_a_student_goes_on_from_an_earlier_one(ray_cluster: None, data, tmp_path: Path):
    first = _distilled(data, tmp_path, "first")
    options = {"muon_learning_rate": 1e-9, "learning_rate": 1e-9, "weight_decay": 0.0}
    second = _distilled(data, tmp_path, "second", CONFIG.model_copy(update=options), start=str(tmp_path / "first.safetensors"))
    assert all(torch.allclose(second[name], first[name], atol=1e-2) for name in first)
    _, facts = read_student(tmp_path / "second.safetensors")
    assert facts["start"] == read_student(tmp_path / "first.safetensors")[1]["code_space"]
