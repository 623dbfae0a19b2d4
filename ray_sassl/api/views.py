"""Views from Python: `draw_views`. Ray is not imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ray_sassl.config.overrides import apply_overrides, strictly
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files.own import write_picture
from ray_sassl.pipeline import CropBlock
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, load_config
from ray_sassl.runs.dose import STYLE, Dose, style_pixels
from ray_sassl.runs.dosing import matched, measure
from ray_sassl.runs.pictures import read_block, views_picture
from ray_sassl.runs.process import build_style_augmentation


@dataclass(frozen=True)
class Equal:
    """Another stylizer at an equal dose.

    Attributes:
        stylizer: Its name.
        overrides: The changes to the experiment that give it: its name, alpha and beta.
        dose: What these give, measured.
    """

    stylizer: str
    overrides: list[str]
    dose: Dose


@dataclass(frozen=True)
class Views:
    """What the network will see.

    Attributes:
        picture: Path of the PNG.
        num_images: The images that the doses were measured on.
        doses: How strong each augmentation of each view is.
        equals: Other stylizers at the dose of the experiment's style.
    """

    picture: str
    num_images: int
    doses: list[Dose]
    equals: list[Equal]


def draw_views(
    experiment: ExperimentConfig | str | os.PathLike[str],
    out: str = "views.png",
    *,
    overrides: Overrides = None,
    num_rows: int = 8,
    against: Sequence[str] = (),
    strict: bool = False,
) -> Views:
    """Draw what the network will see: crops, stylized crops and final views of some images; and measure how strong the augmentations are,
    on a block of images (`data.block_rows`).

    Args:
        experiment: A config, an experiment's name, a YAML file, or a run directory.
        out: Path or URI of the PNG.
        overrides: Changes to the config.
        num_rows: How many images to show.
        against: Stylizers whose alpha and beta are chosen so that they change pixels as much as the experiment's stylizer does.
        strict: Refuse data of which anything is left out, instead of saying so.

    Raises:
        UsageError: the config is wrong, its data or a stylizer are missing, or a stylizer cannot reach the dose.
    """
    config = load_config(experiment, overrides)
    if against and config.stylize.is_identity:
        raise UsageError(f"{config.name} has no style whose dose could be matched; choose a stylizer, as in stylize=swift")
    config = strictly(config) if strict else config
    style = build_style_augmentation(config, "cpu", 1)
    source, block = read_block(config)
    picture = views_picture(config, source, block, style and style.stylize, num_rows)
    doses = measure(config, block, style)
    equals = [_equal(config, block, name, style_pixels(doses)) for name in against]
    write_picture(out, picture)
    return Views(out, len(block.sample_id), doses, equals)


def _equal(config: ExperimentConfig, block: CropBlock, stylizer: str, pixels: float) -> Equal:
    overrides = matched(config, block, stylizer, pixels)
    doses = measure(other := apply_overrides(config, overrides), block, build_style_augmentation(other, "cpu", 1))
    return Equal(stylizer, overrides, next(dose for dose in doses if dose.what == STYLE))
