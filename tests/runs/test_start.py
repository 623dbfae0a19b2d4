"""Runs that start from the weights of others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ray_sassl
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.plugins import plugin_names
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import load_config
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.pages.starting import against_start
from ray_sassl.runs.process import build_method, load_backbone
from ray_sassl.runs.recipe import Machine, choose_recipe
from ray_sassl.runs.record import read_run
from ray_sassl.runs.start import START, START_RECORD, keep_start
from tests.runs.photos import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_photos(tmp_path_factory.mktemp("data") / "photos", 64, classes=2))


@pytest.fixture(scope="module")
def test_photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_photos(tmp_path_factory.mktemp("data") / "test", 20, classes=2, first=1000))


@pytest.fixture(scope="module")
def config(photos: str, test_photos: str) -> ExperimentConfig:
    """A run of two steps."""
    changes = ["train.epochs=1", "stylize=identity", "views.size_px=48", "train.evaluate_every=2", "evaluate.size_px=16"]
    return choose_recipe(photos, [*changes, ("evaluate.test", {"path": test_photos})], Machine()).config


@pytest.fixture(scope="module")
def first(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    return ray_sassl.pretrain(config, tmp_path_factory.mktemp("runs") / "first").run_dir


def _from(config: ExperimentConfig, weights: str, **changes: object) -> ExperimentConfig:
    return load_config(config, {"backbone.weights": weights, **changes})


@pytest.mark.parametrize("name", plugin_names("ray_sassl.methods"))
def test_every_objectives_networks_start_as_the_source(config: ExperimentConfig, first: str, tmp_path: Path, name: str):
    own = choose_recipe(config.data.paths[0], [f"method={name}", "stylize=identity"], Machine()).config
    start = _from(own, first)
    keep_start(start, str(tmp_path))
    state = find_checkpoint(first).backbone
    method = build_method(start, str(tmp_path))
    for key, tensor in method.backbone.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    copies = [
        tensor
        for key, tensor in method.state_dict().items()
        if key.endswith("conv1.weight") and tensor.shape == state["conv1.weight"].shape
    ]
    assert all(torch.equal(tensor, state["conv1.weight"]) for tensor in copies if tensor.shape[1] == 3)


def test_a_run_continues_from_the_encoder_of_another_and_is_compared_with_it(config: ExperimentConfig, first: str, tmp_path: Path):
    second = ray_sassl.pretrain(_from(config, first, **{"optim.base_lr": 1e-8}), tmp_path / "second").run_dir
    record = json.loads((Path(second) / START_RECORD).read_text())
    assert record["source"] == find_checkpoint(first).path
    assert record["num_tensors"] == len(find_checkpoint(first).backbone)
    before, after = (load_backbone(find_checkpoint(run))[1].get_parameter("conv1.weight") for run in (first, second))
    assert torch.allclose(before, after, atol=1e-6)
    result = ray_sassl.evaluate(second, ["knn", "forgetting"])
    assert [list(found) for found in result.evaluations.values()] == [["step 2", "starting point"]] * 2
    assert result.scores["forgetting"] == result.scores["knn"]  # the source was evaluated on the same images
    scores = read_run(second).scores
    assert all(one.start is not None and one.start.predictions is not None for one in scores)
    sentence, *_ = against_start([next(one for one in scores if one.protocol == "knn")])
    assert re.fullmatch(r"knn top1: not better \([+-]\d+\.\d points, 95 % .*\) than the starting point", sentence)
    assert sentence in Path(ray_sassl.report(second)).read_text()


def test_a_file_of_weights_is_evaluated_without_a_run_as_the_run_that_it_came_from(
    config: ExperimentConfig, first: str, photos: str, test_photos: str, tmp_path: Path
):
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": find_checkpoint(first).backbone}, file)
    how = {"backbone": "resnet20", "train": photos, "test": test_photos, "overrides": {"evaluate.size_px": 16}}
    result = ray_sassl.evaluate(file, ["knn"], **how, baselines=True, out=str(tmp_path / "out"))
    assert list(result.evaluations["knn"]) == ["weights.pth", "untrained encoder", "raw pixels"]
    assert result.scores == ray_sassl.evaluate(first, ["knn"]).scores
    assert json.loads(Path(result.paths["knn"]).read_text())["checkpoint"] == str(file)
    with pytest.raises(UsageError, match="does not say which network it is for; name it: --backbone resnet50"):
        ray_sassl.evaluate(file, ["knn"])
    with pytest.raises(UsageError, match="the run did not start from one that has such images"):
        ray_sassl.evaluate(file, ["forgetting"], backbone="resnet20")


def test_a_resume_does_not_need_the_source_and_frozen_blocks_stay_bit_identical(config: ExperimentConfig, tmp_path: Path):
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(5)
    encoder, _ = build_backbone(BackboneConfig(name=config.backbone.name))
    safetensors.torch.save_file(encoder.state_dict(), file)
    start = _from(config, str(file), **{"backbone.freeze": "1"})
    run_dir = ray_sassl.pretrain(start, tmp_path / "run").run_dir
    file.unlink()
    ray_sassl.pretrain(start, run_dir, overrides={"train.epochs": 2.0}, resume=True)
    checkpoint = find_checkpoint(run_dir)
    assert checkpoint.step == 4
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, checkpoint.backbone[name]) == name.startswith(("conv1", "bn1", "blocks.0.")), name


def test_weights_that_saw_other_colors_are_refused_with_the_overrides_that_help(config: ExperimentConfig, first: str, tmp_path: Path):
    other = _from(config, first, **{"train.pixel_mean": [0.5, 0.5, 0.5]})
    with pytest.raises(UsageError, match=r"Add train\.pixel_mean='\[0\.485, 0\.456, 0\.406\]'"):
        keep_start(other, str(tmp_path))


def test_weights_at_a_missing_path_are_refused(config: ExperimentConfig, tmp_path: Path):
    with pytest.raises(UsageError, match="there is nothing at"):
        keep_start(_from(config, str(tmp_path / "absent")), str(tmp_path))
    with pytest.raises(UsageError, match="timm:resnet_of_nobody has no weights here"):
        keep_start(_from(config, "timm:resnet_of_nobody"), str(tmp_path))


def test_a_recipe_takes_encoder_size_and_colors_from_the_weights_and_lowers_the_rate(photos: str, first: str, config: ExperimentConfig):
    recipe = choose_recipe(photos, [f"backbone.weights={first}"], Machine())
    assert recipe.config.backbone.name == "resnet20"
    assert recipe.config.views.size_px == recipe.config.evaluate.size_px == 48  # larger than the images'
    assert [choice.what for choice in recipe.choices].count("encoder") == 1
    assert next(choice.reason for choice in recipe.choices if choice.what == "learning rate").startswith("a tenth")
    assert recipe.config.backbone.weights == first
    assert recipe.config.optim.base_lr == pytest.approx(config.optim.base_lr / 10)
    assert not (Path(first) / START).exists()
