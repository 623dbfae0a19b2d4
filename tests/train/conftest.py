"""A tiny data set, and whole runs on it in this process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import cached_index
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.pipeline import local_batches
from ray_sassl.plugins import load_plugin
from ray_sassl.runs.files import INDEX
from ray_sassl.runs.process import build_stylize_block, train_process, view_source
from ray_sassl.train.checkpoint import Checkpoint, latest_checkpoint
from ray_sassl.train.config import micro_batch
from ray_sassl.train.context import LocalContext
from ray_sassl.types import Arrays, Outcome
from ray_sassl.views.recipes import ViewsConfig, simclr

NUM_ROWS = 44
BAD_ROWS = (5, 30)

METHODS = {
    "simclr": {"name": "simclr", "projector_hidden_size": 16, "embedding_size": 8, "temperature": 0.5},
    "moco": {"name": "moco", "projector_hidden_size": 16, "embedding_size": 8, "queue_size": 20, "momentum": 0.9, "bn": "sync"},
    "byol": {"name": "byol", "projector_hidden_size": 16, "embedding_size": 8, "predictor_hidden_size": 16, "base_momentum": 0.9},
    "swav": {
        "name": "swav",
        "projector_hidden_size": 16,
        "embedding_size": 8,
        "num_prototypes": 10,
        "prototypes_frozen": 0.3,
        "queue_size": 24,
        "queue_start": 0.5,
    },
    "dino": {
        "name": "dino",
        "projector_hidden_size": 16,
        "embedding_size": 8,
        "num_outputs": 10,
        "base_momentum": 0.9,
        "teacher_warmup": 0.7,
        "last_layer_frozen": 0.3,
    },
    "barlow_twins": {"name": "barlow_twins", "projector_hidden_size": 16, "embedding_size": 8},
    "vicreg": {"name": "vicreg", "projector_hidden_size": 16, "embedding_size": 8},
}


def write_shards(folder: Path, bad_rows: tuple[int, ...] = ()) -> None:
    """Two Parquet shards of `NUM_ROWS` small images in row groups of 8; the bad rows hold no image."""
    rng = np.random.default_rng(0)
    encoded = []
    for row in range(NUM_ROWS):
        out = io.BytesIO()
        # Images that differ in color and contrast: of like images a network's features are so alike that normalizing them
        # over the batch would enlarge every rounding error.
        colors = rng.uniform(0, 256, 3) + rng.uniform(0, 1) * (rng.uniform(0, 256, (4, 4, 3)) - 128)
        Image.fromarray(colors.clip(0, 255).astype(np.uint8)).resize((20, 20), Image.Resampling.BICUBIC).save(out, "PNG")
        encoded.append(b"no image" if row in bad_rows else out.getvalue())
    for shard, rows in enumerate((slice(0, 24), slice(24, NUM_ROWS))):
        table = pa.table({"image": encoded[rows], "label": pa.array(np.arange(NUM_ROWS)[rows] % 4, pa.int32())})
        pq.write_table(table, folder / f"train-{shard}.parquet", row_group_size=8)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a data set of `NUM_ROWS` good rows."""
    folder = tmp_path_factory.mktemp("tiny")
    write_shards(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_data_with_bad_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same with two rows that cannot be decoded."""
    folder = tmp_path_factory.mktemp("tiny_bad")
    write_shards(folder, BAD_ROWS)
    return str(folder)


def _views(method: str) -> ViewsConfig:
    pair = simclr(16)
    if not load_plugin("ray_sassl.methods", method).Config.takes_small_views:
        return pair
    small = pair.left.model_copy(update={"crop_scale": (0.1, 0.4)})
    return pair.model_copy(update={"num_small": 3, "small_px": 8, "small": small})


@pytest.fixture(scope="session")
def tiny_config(tiny_data: str) -> Callable[..., ExperimentConfig]:
    """`tiny_config(method, *overrides)`: a run of six steps of 16 images, whose plan has blocks of 10 rows.

    Methods that take local crops have three of them.
    """

    def make(method: str = "simclr", *overrides: str) -> ExperimentConfig:
        base = load_experiment("demo_plain").model_dump(mode="json")
        base |= {
            "name": "tiny",
            "data": DataConfig(path=tiny_data, shuffle_window=16, block_rows=10, max_bad_fraction=0.1).model_dump(mode="json"),
            "views": _views(METHODS[method]["name"]).model_dump(mode="json"),
            "method": METHODS[method],
            "evaluate": {},
        }
        base["train"] |= {"epochs": 2.2, "global_batch": 16, "log_every": 1, "checkpoint_every": 100}
        base["optim"] |= {"base_lr": 0.5, "warmup_epochs": 0.4}
        base["tracking"] |= {"tensorboard": False}
        return apply_overrides(ExperimentConfig.model_validate(base), overrides)

    return make


@dataclass
class Run:
    """What a run in this process left.

    Attributes:
        outcome: As the loop told it.
        metrics: Rank 0's reports.
        taken: Keys (epoch, sample id) of the rows that were trained on, in order.
        bad: Rows that could not be used, each time they were met.
    """

    outcome: Outcome
    metrics: list[dict[str, float]]
    taken: list[tuple[int, int]]
    bad: list[BadRow] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [report["loss"] for report in self.metrics]


def run_here(config: ExperimentConfig, run_dir: str | Path, context: LocalContext | None = None, resume: bool = True) -> Run:
    """The run, or what is left of it, in this process; a stop is asked for by `context.stop_at_step`."""
    folder = str(run_dir)
    context = context or LocalContext()
    index = cached_index(config.data, storage.join(folder, INDEX))
    checkpoint = latest_checkpoint(folder) if resume else None
    taken: list[tuple[int, int]] = []
    bad: list[BadRow] = []
    batches = local_batches(
        view_source(config, folder),
        epochs=config.train.epochs,
        batch_size=micro_batch(config.train, context.world_size),
        on_bad=bad.extend,
        stylize_block=build_stylize_block(config, "cpu", 1),
        seen=checkpoint.seen if checkpoint else None,
        rank=context.rank,
        world_size=context.world_size,
        accumulate=config.train.accumulate,
        times=context.times,
    )

    def noted() -> Iterator[Arrays]:
        for batch in batches:
            taken.extend(zip(batch["epoch"].tolist(), batch["sample_id"].tolist(), strict=True))
            yield batch

    outcome = train_process(config, folder, noted(), index.num_rows, context, checkpoint)
    return Run(outcome, context.reports, taken, bad)


@pytest.fixture(scope="session", name="run_here")
def _run_here() -> Callable[..., Run]:
    return run_here


def assert_same(one: Any, other: Any, where: str = "") -> None:
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{place}]")
    else:
        assert one == other, where


def assert_same_checkpoints(one: Checkpoint | None, other: Checkpoint | None) -> None:
    """Step, encoder, the rest of the method (queue, momentum copies), optimizer and seen samples are equal, bit for bit."""
    assert one is not None
    assert other is not None
    assert one.step == other.step
    assert_same(one.backbone, other.backbone, "backbone")
    assert_same(one.state, other.state, "state")
    assert one.seen.encode() == other.seen.encode()


@pytest.fixture(scope="session", name="assert_same_checkpoints")
def _assert_same_checkpoints() -> Callable[..., None]:
    return assert_same_checkpoints
