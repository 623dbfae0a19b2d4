"""A run that distills a frozen teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import ray_sassl
from ray_sassl.config.files import from_yaml
from ray_sassl.evaluation.features import features_of
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import load_backbone
from ray_sassl.runs.recipe import Machine, choose_recipe
from ray_sassl.runs.teacher import build_teacher
from tests.runs.photos import write_photos


def test_a_run_learns_the_features_of_another_runs_encoder_and_resumes_without_it(tmp_path: Path):
    photos = str(write_photos(tmp_path / "photos", 64))
    short = ["train.epochs=1", "stylize=identity", "views.size_px=16", "evaluate.final_test=false"]
    teacher = ray_sassl.pretrain(choose_recipe(photos, short, Machine()).config, tmp_path / "teacher").run_dir
    config = choose_recipe(photos, [*short, "method=distill", f"method.teacher={teacher}", "train.epochs=3"], Machine()).config
    result = ray_sassl.pretrain(config, tmp_path / "student")
    assert 0 < result.metrics["loss"] < 1.2
    begun = from_yaml((tmp_path / "student" / "config.yaml").read_text())
    assert begun.method.teacher_backbone.name == "resnet20"
    teach = build_teacher(begun, result.run_dir, "cpu", 1)
    assert teach is not None
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    trained_config, network = load_backbone(find_checkpoint(teacher))
    train = trained_config.train
    expected = features_of(network.eval(), images, train.pixel_mean, train.pixel_std, torch.device("cpu"))
    np.testing.assert_array_equal(teach(images), expected.astype(np.float16))
    Path(teacher).rename(tmp_path / "moved")
    again = ray_sassl.pretrain(config, result.run_dir, overrides={"train.epochs": 4.0}, resume=True)
    assert again.step > result.step


def test_a_file_that_does_not_name_its_network_needs_one(tmp_path: Path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    photos = str(write_photos(tmp_path / "photos", 64))
    config = choose_recipe(photos, ["method=distill", f"method.teacher={tmp_path / 'weights.pth'}"], Machine()).config
    with pytest.raises(UsageError, match=r"name it: method\.teacher_backbone="):
        ray_sassl.pretrain(config, tmp_path / "run")
