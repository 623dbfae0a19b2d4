"""Fine-tuning on real images, through the subject that the command line uses."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.evaluation.datasets import load_evaluation_data
from ray_sassl.evaluation.protocols.finetune import Config as FineTune
from ray_sassl.evaluation.protocols.linear import Config as Linear
from ray_sassl.evaluation.protocols.semi_supervised import Config as SemiSupervised
from ray_sassl.evaluation.subject import EncoderSubject, untrained_backbone
from ray_sassl.experiments import load_experiment


@pytest.fixture
def cifar(shared_dir: Path, tmp_path: Path) -> EncoderSubject:
    """An untrained ResNet-20 with 1,000 train and 600 test images of CIFAR-10."""
    for split, rows in (("train", 1000), ("test", 600)):
        table = pq.read_table(shared_dir / "data" / "cifar10" / f"{split}-00000.parquet").slice(0, rows)
        pq.write_table(table, tmp_path / f"{split}.parquet", row_group_size=500)
    splits = [f"evaluate.{split}={{path: {tmp_path}/{split}.parquet}}" for split in ("train", "test")]
    config = apply_overrides(load_experiment("moco_cifar10_cpu"), [*splits, "evaluate.size_px=16"])
    return EncoderSubject(untrained_backbone(config), config, load_evaluation_data(config))


@pytest.mark.slow
def test_fine_tuning_beats_the_frozen_probe_and_more_labels_beat_fewer(cifar):
    before = {name: value.clone() for name, value in cifar._encoder.state_dict().items()}
    frozen = Linear(l2=1e-2).build().evaluate(cifar).scores["top1"]
    tuned = FineTune(epochs=8, batch_size=32, learning_rate=0.2).build().evaluate(cifar).scores["top1"]
    few = SemiSupervised(subsets=(0.05,), epochs=15, batch_size=16, learning_rate=0.2).build().evaluate(cifar).scores["5_percent_top1"]
    assert tuned.low is not None
    assert tuned.low > frozen.value
    assert tuned.low > few.value
    assert all(torch.equal(value, before[name]) for name, value in cifar._encoder.state_dict().items())


@pytest.mark.slow
def test_the_probe_of_crops_learns_from_real_images_what_the_probe_of_features_does(cifar):
    before = {name: value.clone() for name, value in cifar._encoder.state_dict().items()}
    fixed = Linear(l2=1e-2).build().evaluate(cifar).scores["top1"]
    crops = Linear(solver="sgd", augment=True, l2=0, epochs=10, batch_size=64, learning_rate=(0.1, 0.5)).build().evaluate(cifar)
    learned = crops.scores["top1"]
    assert learned.value > fixed.value - 0.05
    assert learned.low is not None
    assert learned.low > 0.15
    assert crops.details["num_held_out"] == 199
    assert all(torch.equal(value, before[name]) for name, value in cifar._encoder.state_dict().items())
