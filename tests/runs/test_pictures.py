"""Pictures of views, without Ray."""

import io

import numpy as np
import pytest
from PIL import Image

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.reading import cached_index
from ray_sassl.experiments import load_experiment
from ray_sassl.runs import pictures
from ray_sassl.runs.files import INDEX
from ray_sassl.runs.pictures import first_block, views_picture
from ray_sassl.runs.process import build_stylize_block, view_source

SMALL_VIEWS = ("method=swav", "views.num_small=2", "views.small_px=16")


@pytest.fixture
def titles_of(tmp_path, monkeypatch):
    """`titles_of(*overrides)`: the titles of the columns of the demo's views, whose picture is checked to be one."""

    def draw(*overrides: str) -> list[str]:
        config = apply_overrides(load_experiment("demo"), ["sassl.prob=1", *overrides])
        cached_index(config.data, str(tmp_path / INDEX))
        grids, image_grid = [], pictures.image_grid

        def spy(rows, titles, captions, cell_px):
            grids.append((titles, [[image.shape for image in row] for row in rows]))
            return image_grid(rows, titles, captions, cell_px)

        monkeypatch.setattr(pictures, "image_grid", spy)
        stylize_block = build_stylize_block(config, "cpu", 1)
        source = view_source(config, str(tmp_path))
        picture = Image.open(io.BytesIO(views_picture(config, source, first_block(source), stylize_block, num_rows=2)))
        assert np.asarray(picture).std() > 0
        ((titles, shapes),) = grids
        for row in shapes:
            assert [shape[0] for shape in row] == [16 if "small" in title else 32 for title in _with_their_view(titles)]
        return titles

    return draw


def _with_their_view(titles: list[str]) -> list[str]:
    """Each title behind that of the crop that began its view."""
    named, view = [], ""
    for title in titles:
        view = title if title.endswith("crop") else view
        named.append(f"{view}: {title}")
    return named


def test_a_pair_is_shown_with_its_style(titles_of):
    assert titles_of() == ["left crop", "its style", "stylized", "left, no style", "left view", "right crop", "right view"]


def test_every_small_view_is_shown(titles_of):
    pair = ["left crop", "left view", "right crop", "right view"]
    assert titles_of(*SMALL_VIEWS, "stylize=identity") == [*pair, "small 1 crop", "small 1 view", "small 2 crop", "small 2 view"]


def test_stylized_local_crops_are_shown_with_their_styles(titles_of):
    titles = titles_of(*SMALL_VIEWS, "sassl.views=small")
    assert titles[:4] == ["left crop", "left view", "right crop", "right view"]
    assert titles[4:9] == ["small 1 crop", "its style", "stylized", "small 1, no style", "small 1 view"]
    assert len(titles) == 14
