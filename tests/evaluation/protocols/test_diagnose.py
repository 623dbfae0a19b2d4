"""The diagnosis of a small subject."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_sassl.evaluation.protocols import diagnose
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from tests.evaluation.conftest import SmallSubject

OPTIONS = {"num_queries": 6, "num_neighbors": 4, "num_shown": 3, "style_copies": 2}


@pytest.fixture(scope="module")
def result():
    return diagnose.Config(**OPTIONS, stylize=ColorStatistics()).build().evaluate(SmallSubject())


def test_figures_are_in_their_ranges(result):
    values = {name: score.value for name, score in result.scores.items()}
    assert 0 < values["alignment"] < 2
    assert -4 < values["uniformity"] < 0
    assert 1 < values["effective_rank"] < 24
    assert 0 < values["feature_std"] < 1
    assert 0 < values["style_distance"] < 2
    assert values["same_class_share"] == 1.0
    assert result.scores["alignment"].low < values["alignment"] < result.scores["alignment"].high


def test_every_picture_is_one(result):
    assert set(result.figures) == {"neighbors", "map", "spectrum", "style"}
    for content in result.figures.values():
        picture = Image.open(io.BytesIO(content))
        assert min(picture.size) > 100
        assert np.asarray(picture).std() > 5


def test_sensitive_images_are_listed_by_their_ids(result):
    most, least = result.details["most_style_sensitive"], result.details["least_style_sensitive"]
    assert sorted(most) == sorted(least) == (3 * np.arange(60) + 5).tolist()
    assert most == least[::-1]


def test_test_images_are_read_once_for_all_copies():
    subject = SmallSubject()
    diagnose.Config(**OPTIONS, stylize=ColorStatistics()).build().evaluate(subject)
    assert subject.num_passes == 1


def test_with_shuffled_labels_neighbors_are_of_the_same_class_by_chance():
    shuffled = SmallSubject(300, 300, shuffled=True)
    result = diagnose.Config(**OPTIONS, stylize=ColorStatistics()).build().evaluate(shuffled)
    assert result.scores["same_class_share"].value == pytest.approx(1 / 3, abs=0.05)
