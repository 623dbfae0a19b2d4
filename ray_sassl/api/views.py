"""Views from Python: `draw_views`. Ray is not imported."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.reading import build_index
from ray_sassl.files.own import write_picture
from ray_sassl.runs.configs import Overrides, load_config
from ray_sassl.runs.directory import INDEX
from ray_sassl.runs.pictures import views_picture
from ray_sassl.runs.process import build_stylize_block, view_source


def draw_views(
    experiment: ExperimentConfig | str | os.PathLike[str], out: str = "views.png", *, overrides: Overrides = None, num_rows: int = 8
) -> str:
    """Draw what the network will see: crops, stylized crops and final views of some images. Returns the path of the picture.

    Args:
        experiment: A config, an experiment's name, a YAML file, or a run directory.
        out: Path or URI of the PNG.
        overrides: Changes to the config.
        num_rows: How many images to show.

    Raises:
        UsageError: the config is wrong, or its data or stylizer are missing.
    """
    config = load_config(experiment, overrides)
    with tempfile.TemporaryDirectory() as folder:
        build_index(config.data).save(Path(folder) / INDEX)
        picture = views_picture(config, view_source(config, folder), build_stylize_block(config, "cpu", 1), num_rows)
    write_picture(out, picture)
    return out
