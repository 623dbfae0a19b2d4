"""What the encoder of a run without labels holds to be alike: nearest neighbors as a picture, and the rank of its features."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.index import Index
from ray_sassl.data.inspect import sample_rows
from ray_sassl.evaluation.features import evaluation_mode, features_of
from ray_sassl.evaluation.geometry import nearest
from ray_sassl.files import storage
from ray_sassl.files.own import write_picture
from ray_sassl.nn.collapse import effective_rank
from ray_sassl.pipeline import decode_images
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.files import FEATURE_RANK, NEIGHBORS, NEIGHBORS_RECORD
from ray_sassl.views.center_crop import as_view
from ray_sassl.views.grid import image_grid

log = logging.getLogger(__name__)

_NUM_IMAGES, _NUM_QUERIES, _NUM_NEIGHBORS = 1000, 8, 7
_BATCH = 64


def draw_neighbors(
    config: ExperimentConfig,
    index: Index,
    run_dir: str,
    backbone: nn.Module,
    device: torch.device,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write `neighbors.png` to the run directory: some images of the run's data, each with those whose features are nearest; and
    `neighbors.json` with their number and the effective rank (RankMe) of their features. If the images cannot be read any more, the log
    says so.

    Args:
        backbone: (B, 3, S, S) -> (B, F) on the device, in any mode.
        check: Called with each batch of images; it may raise an error to end the work.
    """
    try:
        view, rows_tried = as_view(config.views.size_px), sample_rows(index, _NUM_IMAGES, config.seed)
        found, _ = decode_images(rows_tried, config.data.max_pixels, lambda image: np.asarray(view.of(image)), lambda bad: None)
        images = np.stack(found)
    except (UsageError, OSError, ValueError) as error:
        log.warning("The run is complete, and has no picture of neighbors: %s", error)
        return
    pixels = config.train.pixel_mean, config.train.pixel_std
    with evaluation_mode(backbone):
        parts = []
        for at in range(0, len(images), _BATCH):
            check()
            parts.append(features_of(backbone, images[at : at + _BATCH], *pixels, device))
    features = torch.from_numpy(np.concatenate(parts))
    queries = np.linspace(0, len(images) - 1, min(_NUM_QUERIES, len(images))).round().astype(int)
    similarity, places = nearest(features[queries], features, _NUM_NEIGHBORS + 1)
    rows, captions = [], []
    for query, values, near in zip(queries.tolist(), similarity.tolist(), places.tolist(), strict=True):
        others = [(place, value) for place, value in zip(near, values, strict=True) if place != query][:_NUM_NEIGHBORS]
        rows.append([images[place] for place in (query, *(place for place, _ in others))])
        captions.append(["", *(f"{value:.2f}" for _, value in others)])
    titles = ["image", *(f"neighbor {number}" for number in range(1, len(rows[0])))]
    write_picture(storage.join(run_dir, NEIGHBORS), image_grid(rows, titles, captions, cell_px=max(112, config.views.size_px // 2)))
    facts = {"images": len(images), FEATURE_RANK: effective_rank(features).item()}
    storage.write_text(storage.join(run_dir, NEIGHBORS_RECORD), json.dumps(facts))
