from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ray_sassl.style.distillation.fidelity import fidelity
from ray_sassl.style.networks.style_network import SmallPredictor, StyleTransformer
from ray_sassl.style.stylizers.magenta import Config as Magenta
from ray_sassl.style.stylizers.swift import CODE_SPACE, SHIPPED, Config, pack_student, read_student
from ray_sassl.style.weights import BadWeightsError, MissingWeightsError

CPU = torch.device("cpu")


def _state(code_size: int = 100) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    networks = {"predictor": SmallPredictor(code_size), "transformer": StyleTransformer(code_size)}
    return {f"{name}.{key}": value for name, network in networks.items() for key, value in network.state_dict().items()}


def _squares(paths: list, size_px: int) -> torch.Tensor:
    images = [np.asarray(Image.open(path).convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)) for path in paths]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_it_is_built_without_a_download_and_is_small():
    assert Config().published_weights() is None
    assert Config().build(CPU).bundle_id == CODE_SPACE
    assert SHIPPED.stat().st_size <= 1_500_000


def test_the_shipped_file_says_what_it_is():
    state, facts = read_student(SHIPPED)
    assert facts["code_space"] == CODE_SPACE
    assert json.loads(facts["distillation"])["steps"] > 0
    assert all(torch.isfinite(value).all() for value in state.values())


def test_it_paints_as_the_published_one_does(shared_dir, weights_cache, monkeypatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))
    names = ("magenta-la_forma", "gordicaleksa-vg_houses", "leonavici-mona_lisa", "zhanghang1989-candy")  # never trained on
    styles = _squares([shared_dir / "data" / "styles" / f"{name}.jpg" for name in names], 256)
    contents = _squares(sorted((shared_dir / "data/transfer/bccd/JPEGImages").glob("*.jpg"))[:3], 96)
    found = fidelity(Config().build(CPU), Magenta().build(CPU), contents, styles)
    assert found.difference < 0.08
    assert found.color < 0.08
    assert found.ssim > found.teacher_ssim - 0.05


def test_colors_of_the_style_are_reached():
    stylizer = Config().build(CPU)
    contents = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    reddish, bluish = (torch.tensor(color).view(1, 3, 1, 1).expand(1, 3, 64, 64) for color in ([0.8, 0.2, 0.2], [0.2, 0.2, 0.8]))
    red, blue = (stylizer.render(contents, stylizer.embed(style).expand(2, -1)).mean(dim=(0, 2, 3)) for style in (reddish, bluish))
    assert red[0] > blue[0] + 0.2
    assert blue[2] > red[2] + 0.2


def test_weights_of_ones_own_are_taken_with_their_code_space(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(pack_student(_state(7), {"code_space": "swift-mine"}))
    stylizer = Config(weights=str(path)).build(CPU)
    assert (stylizer.bundle_id, stylizer.code_size) == ("swift-mine", 7)
    assert stylizer.embed(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_missing_and_damaged_and_other_files_are_refused(tmp_path):
    with pytest.raises(MissingWeightsError, match="no weights"):
        Config(weights=str(tmp_path / "none.safetensors")).build(CPU)
    damaged, other = tmp_path / "damaged.safetensors", tmp_path / "other.safetensors"
    damaged.write_bytes(SHIPPED.read_bytes()[:-100])
    with pytest.raises(BadWeightsError, match="damaged"):
        Config(weights=str(damaged)).build(CPU)
    other.write_bytes(pack_student({"x": torch.zeros(2)}, {}))
    with pytest.raises(BadWeightsError, match="not written by"):
        Config(weights=str(other)).build(CPU)
