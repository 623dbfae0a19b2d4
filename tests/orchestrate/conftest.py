"""A small data set with a few bad images, and small configs of runs and studies on it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig, ScalingConfig
from ray_sassl.data import DataConfig
from ray_sassl.methods.moco import Config as MoCo
from ray_sassl.runs.teacher import keep_teacher, with_teacher
from ray_sassl.study.record import StudyConfig
from ray_sassl.study.space import Float, SearchSpace
from ray_sassl.train.config import OptimConfig, TrainConfig
from ray_sassl.train.metrics import TrackingConfig
from ray_sassl.views.recipes import moco_v2

NUM_ROWS = 160


def write_shards(folder: Path, num_rows: int = NUM_ROWS, bad: tuple[int, ...] = ()) -> str:
    """Two Parquet shards of small noisy PNGs in row groups of 20; the rows in `bad` hold no image."""
    draws = np.random.default_rng(0)
    encoded = []
    for row in range(num_rows):
        pixels = draws.integers(0, 256, (20, 24, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        encoded.append(b"not an image" if row in bad else buffer.getvalue())
    half = num_rows // 2
    for number, part in enumerate((encoded[:half], encoded[half:])):
        table = pa.table({"image": part, "label": list(range(len(part)))})
        pq.write_table(table, folder / f"train-{number}.parquet", row_group_size=20)
    return str(folder / "*.parquet")


def write_held_shards(folder: Path) -> str:
    """As `write_shards`, in a folder of their own: images to test on."""
    (folder / "held").mkdir(exist_ok=True)
    return write_shards(folder / "held")


def small_study(folder: Path, *, epochs: float = 4, num_workers: int = 0, reduction_factor: float = 3.0, **changes: Any) -> StudyConfig:
    """A study of real runs of `small_config`, on shards that are written into the folder, over the learning rate; one trial at a time."""
    rate = Float(path="optim.base_lr", low=1e-3, high=0.3, log=True)
    fields: dict[str, Any] = {"searcher": "random", "scheduler": "fifo", "num_trials": 1, "max_concurrent": 1}
    return StudyConfig(
        name="small",
        base=small_config(write_shards(folder), epochs=epochs, num_workers=num_workers),
        space=SearchSpace(parameters=(rate,), reduction_factor=reduction_factor),
        objectives=("knn_top1",),
        **(fields | changes),
    )


def small_config(path: str, *, epochs: float = 2, num_workers: int = 1, max_bad_fraction: float = 0.05) -> ExperimentConfig:
    """MoCo with a ResNet-20 in steps of 16 images."""
    return ExperimentConfig(
        name="small",
        data=DataConfig(path=path, shuffle_window=60, block_rows=30, max_bad_fraction=max_bad_fraction),
        views=moco_v2(16),
        backbone=BackboneConfig(name="resnet20"),
        method=MoCo(queue_size=40, projector_hidden_size=16, embedding_size=8),
        train=TrainConfig(epochs=epochs, global_batch=16, log_every=2, keep_checkpoints=5),
        optim=OptimConfig(base_lr=0.1),
        evaluate=EvaluateConfig(train=DataConfig(path=path, max_bad_fraction=1), validation=0.4, size_px=16),
        scaling=ScalingConfig(num_workers=num_workers, cpus_per_worker=0.5, threads_per_worker=1),
        tracking=TrackingConfig(tensorboard=False),
    )


def kept_teacher(config: ExperimentConfig, run_dir: str, folder: Path) -> ExperimentConfig:
    """The config with a ResNet-20 of random weights as a frozen teacher, which the run directory holds as after a start."""
    file = folder / "teacher.safetensors"
    torch.manual_seed(0)
    safetensors.torch.save_file(build_backbone(BackboneConfig(name="resnet20"))[0].state_dict(), file)
    config = apply_overrides(config, ["method=distill", f"method.teacher={file}", "method.teacher_backbone={name: resnet20}"])
    config, source = with_teacher(config, run_dir, resume=False)
    assert source is not None
    keep_teacher(config, source, run_dir)
    return config
