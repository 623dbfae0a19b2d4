"""The weights that a run starts from, kept in its run directory, so that every worker, a resume and an evaluation find them there.

start.safetensors   the encoder before the first step
start.json          where it comes from, what was loaded and what was left
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict

import safetensors.torch
from torch import Tensor, nn

from ray_sassl.backbones import PUBLISHED
from ray_sassl.backbones.parts import freeze
from ray_sassl.backbones.weights import Loaded, Source, encoder_from, encoder_with, published, read_state
from ray_sassl.config.files import from_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.files import storage
from ray_sassl.files.json_files import as_mapping, read_json
from ray_sassl.files.paths import absolute, with_absolute_paths
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.files import CONFIG

START, START_RECORD = "start.safetensors", "start.json"

log = logging.getLogger(__name__)


def find_source(weights: str) -> Source:
    """The weights that `backbone.weights` names.

    Raises:
        UsageError: the path does not exist, or has no weights.
    """
    if weights.startswith(PUBLISHED):
        library, _, name = weights.partition(":")
        return published(library, name)
    weights = absolute(weights)
    entry = storage.stat(weights)
    if entry is None:
        raise UsageError(f"there is nothing at {weights}; give a run directory, a checkpoint, a file, or timm:NAME")
    if not entry.is_file:
        checkpoint = find_checkpoint(weights)
        config = from_yaml(checkpoint.config_yaml, source=f"{checkpoint.path}/{CONFIG}")
        evaluate = config.evaluate
        data = {} if evaluate.train is None or evaluate.test is None else {"train": evaluate.train, "test": evaluate.test}
        return Source(
            checkpoint.path,
            checkpoint.backbone,
            config.train.pixel_mean,
            config.train.pixel_std,
            config.backbone,
            config.views.size_px,
            {split: with_absolute_paths(images).model_dump(mode="json") for split, images in data.items()},
        )
    return Source(weights, read_state(storage.read_bytes(weights), weights))


def keep_start(config: ExperimentConfig, run_dir: str) -> Loaded | None:
    """Write the weights that the run starts from into its directory; None if it starts from random ones.

    Raises:
        UsageError: the weights do not fit the encoder, or were trained on images that were normalized otherwise.
    """
    weights = config.backbone.weights
    if weights is None:
        return None
    source = find_source(weights)
    _check_pixels(config, source)
    backbone, _, loaded = encoder_from(config.backbone, source)
    frozen = freeze(backbone, config.backbone.freeze)
    tensors = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    storage.write_bytes(storage.join(run_dir, START), safetensors.torch.save(tensors))
    record = {"source": source.name, "frozen": frozen, **asdict(loaded), "data": source.data}
    storage.write_text(storage.join(run_dir, START_RECORD), json.dumps(record, indent=2))
    log.warning("%s", in_words(source.name, loaded, frozen))
    return loaded


def in_words(source: str, loaded: Loaded, frozen: tuple[str, ...]) -> str:
    """What was loaded, in a sentence or three."""
    text = f"The encoder starts from {source}: all of its {loaded.num_tensors} tensors ({loaded.num_parameters:,} parameters) were loaded"
    if loaded.part:
        text += f" from {loaded.part.rstrip('.')}"
    if loaded.left:
        text += f". {len(loaded.left)} other tensors were left out: {', '.join(loaded.left[:5])}{', ...' if len(loaded.left) > 5 else ''}"
    return text + (f". Frozen: {', '.join(frozen)}." if frozen else ".")


def _check_pixels(config: ExperimentConfig, source: Source) -> None:
    """The encoder must see colors as it did before."""
    for name, known in (("pixel_mean", source.pixel_mean), ("pixel_std", source.pixel_std)):
        if known is not None and tuple(known) != getattr(config.train, name):
            raise UsageError(
                f"{source.name} was trained on images normalized with {name}={list(known)}, and this run has "
                f"{list(getattr(config.train, name))}. Add train.pixel_mean='{list(source.pixel_mean or ())}' "
                f"train.pixel_std='{list(source.pixel_std or ())}'"
            )


def load_start(config: ExperimentConfig, run_dir: str, backbone: nn.Module) -> None:
    """Put the weights that the run starts from into its encoder and freeze what is not trained; nothing if they are random."""
    if config.backbone.weights is None:
        return
    backbone.load_state_dict(_start(run_dir))
    freeze(backbone, config.backbone.freeze)


def start_of(config: ExperimentConfig, run_dir: str) -> nn.Module | None:
    """The encoder that the run has started from; None if its weights were random, or are not there any more."""
    if config.backbone.weights is None or not storage.exists(storage.join(run_dir, START)):
        return None
    return encoder_with(config.backbone, _start(run_dir))[0]


def _start(run_dir: str) -> dict[str, Tensor]:
    return safetensors.torch.load(storage.read_bytes(storage.join(run_dir, START)))


def source_data(run_dir: str) -> dict[str, DataConfig]:
    """The labeled images, by split, that the run was evaluated on whose weights this one has started from; empty if they are unknown."""
    path = storage.join(run_dir, START_RECORD)
    data = as_mapping((read_json(path) or {}).get("data")) if storage.exists(path) else {}
    return {split: DataConfig.model_validate(images) for split, images in data.items()}
