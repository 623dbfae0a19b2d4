"""The dose of a run's augmentations, on the demo's images."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.reading import cached_index
from ray_sassl.experiments import load_experiment
from ray_sassl.pipeline import CropBlock
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.dose import STYLE, Dose, doses_in, write_doses
from ray_sassl.runs.dosing import matched, measure
from ray_sassl.runs.files import INDEX
from ray_sassl.runs.pictures import first_block
from ray_sassl.runs.process import build_style_augmentation, view_source

CONFIG = apply_overrides(load_experiment("demo"), ["data.block_rows=32", "sassl.alpha=[0.1, 0.3]", "sassl.beta=[0.1, 0.3]"])


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> CropBlock:
    folder = str(tmp_path_factory.mktemp("run"))
    cached_index(CONFIG.data, f"{folder}/{INDEX}")
    return first_block(view_source(CONFIG, folder))


def _measured(block: CropBlock, *overrides: str) -> dict[tuple[str, str], Dose]:
    config = apply_overrides(CONFIG, overrides)
    return {(dose.view, dose.what): dose for dose in measure(config, block, build_style_augmentation(config, "cpu", 1))}


def test_only_what_a_view_has_is_measured(block):
    both = ["jitter", "grayscale", "all together"]
    assert list(_measured(block)) == [("left", STYLE), *(("left", what) for what in both), *(("right", what) for what in both)]
    changes = ["views.left.blur_prob=0.3", "views.right.solarize_prob=0.2", "sassl.views=right", "views.left.jitter_prob=0"]
    measured = _measured(block, *changes)
    expected = [("left", what) for what in ("grayscale", "blur", "all together")]
    expected += [("right", what) for what in (STYLE, "jitter", "grayscale", "solarize", "all together")]
    assert list(measured) == expected
    assert measured["left", "blur"].prob == 0.3
    assert ("left", STYLE) not in _measured(block, "stylize=identity")


def test_the_dose_of_style_is_that_of_stylized_images_and_is_none_at_strength_zero(block):
    dose, rarely = (_measured(block, f"sassl.prob={prob}")["left", STYLE] for prob in (1, 0.1))
    assert dose.pixels == rarely.pixels > 0
    assert (dose.prob, rarely.prob) == (1, 0.1)
    assert dose.reconstruction == 0  # in closed form an image's own style gives it back
    assert dose.codes is not None
    assert 0 < dose.codes < 0.5
    nothing = _measured(block, "sassl.alpha=[0, 0]", "sassl.beta=[0, 0]")["left", STYLE]
    assert (nothing.pixels, nothing.reconstruction, nothing.codes) == (0, None, 0)
    strong = _measured(block, "sassl.alpha=[1, 1]", "sassl.beta=[1, 1]")["left", STYLE]
    assert strong.pixels > 3 * dose.pixels
    assert strong.codes is not None
    assert strong.codes > dose.codes


def test_a_network_changes_images_even_in_their_own_style(block):
    dose = _measured(block, "stylize=swift")["left", STYLE]
    assert dose.reconstruction is not None
    assert 0.5 < dose.reconstruction < 1.2


@pytest.mark.parametrize("stylizer", ["color_statistics", "fda", "{name: fda, cycles: 0}"])
def test_another_stylizer_is_given_an_equal_dose(block, stylizer):
    wanted = _measured(block, "stylize=swift")["left", STYLE].pixels
    overrides = matched(CONFIG, block, stylizer, wanted)
    assert _measured(block, *overrides)["left", STYLE].pixels == pytest.approx(wanted, rel=0.03)


def test_a_dose_that_cannot_be_reached_and_a_stylizer_without_one_are_refused(block):
    with pytest.raises(UsageError, match="a dose of 200 gray levels is not possible here"):
        matched(CONFIG, block, "fda", 200)
    with pytest.raises(UsageError, match="stylize=identity changes nothing"):
        matched(CONFIG, block, "identity", 1)


def test_doses_are_read_as_they_were_written(block, tmp_path):
    doses = list(_measured(block).values())
    write_doses(str(tmp_path), doses, 32)
    tree = json.loads((tmp_path / "dose.json").read_text())
    assert tree["images"] == 32
    assert doses_in(tree) == doses
    damaged_ones: list[dict[str, object]] = [{}, {"doses": 3}, {"doses": [{}]}, {"doses": [tree["doses"][0] | {"pixels": "x"}]}]
    for damaged in damaged_ones:
        with pytest.raises(UsageError, match="does not hold doses"):
            doses_in(damaged)


def test_local_crops_are_measured_once(block):
    config: ExperimentConfig = apply_overrides(CONFIG, ["method=swav", "views.num_small=2", "views.small_px=16", "sassl.views=all"])
    small = [np.zeros((32, 16, 16, 3), np.uint8)] * 2
    crops = CropBlock([*block.views, *small], block.sample_id, block.epoch, block.keep)
    doses = measure(config, crops, build_style_augmentation(apply_overrides(config, ["stylize=fda"]), "cpu", 1))
    assert [dose.view for dose in doses if dose.what == STYLE] == ["left", "right", "small"]
