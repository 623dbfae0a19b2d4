"""The frozen teacher of a run that distills one: kept in the run directory, so that every process of the stream finds it there."""

from __future__ import annotations

import json

import safetensors.torch
import torch

from ray_sassl.backbones.weights import Source, encoder_from, encoder_with
from ray_sassl.config.files import from_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.features import features_of
from ray_sassl.files import storage
from ray_sassl.files.json_files import parse_json
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.methods.distill import Config as Distill
from ray_sassl.pipeline import Teach
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.files import CONFIG, TEACHER
from ray_sassl.runs.start import find_source

_PIXELS = "pixels"


def with_teacher(config: ExperimentConfig, run_dir: str, *, resume: bool) -> tuple[ExperimentConfig, Source | None]:
    """The config with the teacher's network settled, and its weights for a new run.

    Raises:
        UsageError: the teacher is missing, or does not say which network it is.
    """
    method = config.method
    if not isinstance(method, Distill) or method.teacher is None:
        return config, None
    source = None
    if resume and storage.exists(path := storage.join(run_dir, CONFIG)):
        begun = from_yaml(storage.read_text(path), source=path).method
        network = begun.teacher_backbone if isinstance(begun, Distill) else None
    else:
        source = find_source(method.teacher)
        network = method.teacher_backbone or source.backbone
        if network is None:
            raise UsageError(
                f"{method.teacher} does not say which network it is for; name it: method.teacher_backbone='{{name: resnet50}}'"
            )
        network = network.model_copy(update={"weights": None, "freeze": "none"})
    return config.model_copy(update={"method": method.model_copy(update={"teacher_backbone": network})}), source


def keep_teacher(config: ExperimentConfig, source: Source, run_dir: str) -> None:
    """Write the teacher to the run directory.

    Raises:
        UsageError: the weights do not fit the network.
    """
    assert isinstance(config.method, Distill)
    assert config.method.teacher_backbone is not None
    network, _, _ = encoder_from(config.method.teacher_backbone, source)
    pixels = [source.pixel_mean or config.train.pixel_mean, source.pixel_std or config.train.pixel_std]
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    storage.write_bytes(storage.join(run_dir, TEACHER), safetensors.torch.save(tensors, {_PIXELS: json.dumps(pixels)}))


def build_teacher(config: ExperimentConfig, run_dir: str, device_type: str, num_threads: int) -> Teach | None:
    """What computes the teacher's features of a block's right views, or None without a teacher.

    Args:
        device_type: `cpu` or `cuda`.
        num_threads: The number of CPU threads that torch may use in this process.
    """
    if not config.method.num_targets:
        return None
    assert isinstance(config.method, Distill)
    assert config.method.teacher_backbone is not None
    torch.set_num_threads(max(1, num_threads))
    content = storage.read_bytes(storage.join(run_dir, TEACHER))
    mean, std = parse_json(read_header(content, TEACHER).metadata[_PIXELS], TEACHER)
    device = torch.device(device_type)
    network = encoder_with(config.method.teacher_backbone, safetensors.torch.load(content))[0].to(device).eval()
    return lambda views: features_of(network, views, mean, std, device).astype("float16")
