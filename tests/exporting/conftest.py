"""Runs that have a checkpoint, without the training: encoders with drawn weights, and images whose label is their color."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from ray_sassl.backbones import build_backbone
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.runs.files import CONFIG, ENVIRONMENT, INDEX, METRICS, SUMMARY
from ray_sassl.train.checkpoint import write_checkpoint
from ray_sassl.types import RunResult

MakeRun = Callable[..., str]
COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])


def write_images(path: Path, num_rows: int, bad: tuple[int, ...] = (), labeled: bool = True, group_rows: int = 20) -> None:
    """A shard of noisy images of 12 x 10 px in row groups, whose label is their color; the rows in `bad` hold no image."""
    rng = np.random.default_rng(num_rows)
    images, labels = [], np.arange(num_rows) % 3
    for row in range(num_rows):
        out = io.BytesIO()
        pixels = (COLORS[labels[row]] + rng.normal(0, 25, (12, 10, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        images.append(b"no image" if row in bad else out.getvalue())
    columns = {"image": images} | ({"label": pa.array(labels, pa.int32())} if labeled else {})
    pq.write_table(pa.table(columns), path, row_group_size=group_rows)


def drawn_backbone(config) -> nn.Module:
    """The network with drawn weights, and with running statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    backbone, _ = build_backbone(config)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return backbone


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run directory with one checkpoint at step 7 and what a finished run leaves; overrides change its config."""
    write_images(tmp_path / "train.parquet", 60)
    write_images(tmp_path / "test.parquet", 42)

    def make(*overrides: str, name: str = "run") -> str:
        given = [
            f"name={name}",
            f"data.path={tmp_path}/train.parquet",
            f"evaluate.train={{path: {tmp_path}/train.parquet}}",
            f"evaluate.test={{path: {tmp_path}/test.parquet}}",
            "evaluate.size_px=16",
            "views.size_px=16",
            "backbone.name=resnet20",
            "method={name: simclr, embedding_size: 8}",
        ]
        config = apply_overrides(load_experiment("demo_plain"), [*given, *overrides])
        run_dir = tmp_path / name
        method = nn.ModuleDict({"backbone": drawn_backbone(config.backbone)})
        checkpoint = write_checkpoint(str(run_dir), 7, method.state_dict(), {}, SeenIds(1), to_yaml(config), keep=1)
        build_index(DataConfig(path=f"{tmp_path}/train.parquet")).save(run_dir / INDEX)
        (run_dir / CONFIG).write_text(to_yaml(config))
        lines = [{"step": step, "loss": 4.0 - step / 10, "chance_loss": 4.2, "knn_top1": 0.3 + step / 100} for step in range(1, 8)]
        (run_dir / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run_dir / ENVIRONMENT).write_text(json.dumps({"python": "3.11", "commit": "c0ffee", "packages": {"torch": torch.__version__}}))
        result = RunResult("finished", 7, str(run_dir), checkpoint, lines[-1])
        (run_dir / SUMMARY).write_text(json.dumps(result.__dict__))
        return str(run_dir)

    return make
