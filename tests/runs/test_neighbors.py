"""The picture of nearest neighbors, against a search by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ray_sassl.data.reading import build_index
from ray_sassl.runs import neighbors
from ray_sassl.runs.recipe import Machine, choose_recipe
from tests.runs.photos import write_photos


def test_neighbors_are_the_images_of_nearest_features_and_not_the_image_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = choose_recipe(str(write_photos(tmp_path / "photos", 70)), ["stylize=identity"], Machine()).config
    shown: list[list[np.ndarray]] = []
    draw = neighbors.image_grid
    monkeypatch.setattr(neighbors, "image_grid", lambda rows, *how, **form: shown.extend(rows) or draw(rows, *how, **form))
    colors = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    neighbors.draw_neighbors(config, build_index(config.data), str(tmp_path), colors, torch.device("cpu"))
    assert (tmp_path / "neighbors.png").stat().st_size > 1000
    facts = json.loads((tmp_path / "neighbors.json").read_text())
    assert facts["images"] == 70
    assert 1 < facts["feature_rank"] <= 3  # three colors
    pixels = np.stack([np.random.default_rng(number).integers(0, 256, 3) for number in range(70)])
    features = (pixels / 255 - config.train.pixel_mean) / config.train.pixel_std
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert len(shown) == 8
    for query, *others in shown:
        (place,) = np.flatnonzero((pixels == query[0, 0]).all(1))
        order = [other for other in np.argsort(-unit @ unit[place]) if other != place]
        assert [image[0, 0].tolist() for image in others] == pixels[order[:7]].tolist()


def test_a_run_whose_images_are_gone_ends_without_a_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = choose_recipe(str(write_photos(tmp_path / "photos", 70)), ["stylize=identity"], Machine()).config
    index = build_index(config.data)
    for file in (tmp_path / "photos").iterdir():
        file.unlink()
    neighbors.draw_neighbors(config, index, str(tmp_path), nn.Flatten(), torch.device("cpu"))
    assert not (tmp_path / "neighbors.png").exists()
    assert "has no picture of neighbors" in caplog.text
