"""ImageNet-100: the experiments of `imagenet` on a hundred of its classes, the benchmark of the feature augmentation paper.

The data are under `RAY_SASSL_DATA` (default `data`): `imagenet100/train` and `imagenet100/val`, as for `imagenet`. There are several
choices of the hundred classes; Tian et al. 2019 (CMC, arXiv 1906.05849) published the usual list. Batch 512 is that of Zhang et al. 2024
(arXiv 2410.12396); the public texts leave the rest open, so it is our choice: ResNet-50, 200 epochs, four GPUs that take half of a batch at
a time.
"""

from __future__ import annotations

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import data_root, imagenet


def simclr_imagenet100() -> ExperimentConfig:
    """SimCLR on ImageNet-100: ResNet-50, batch 512 in two parts, LARS, 200 epochs on four GPUs."""
    return _on_100_classes("simclr_imagenet100", imagenet.simclr_imagenet())


def moco_imagenet100() -> ExperimentConfig:
    """MoCo v2 on ImageNet-100: ResNet-50, batch 512 in two parts, SGD, queue 16,384, 200 epochs on four GPUs."""
    return _on_100_classes("moco_imagenet100", imagenet.moco_imagenet(), "method.queue_size=16384")


def byol_imagenet100() -> ExperimentConfig:
    """BYOL on ImageNet-100: ResNet-50, batch 512 in two parts, LARS, 200 epochs on four GPUs.

    Zhang et al. 2024 have a linear top-1 of 69.1 %.
    """
    return _on_100_classes("byol_imagenet100", imagenet.byol_imagenet())


def moco_imagenet100_sassl() -> ExperimentConfig:
    """`moco_imagenet100` with style augmentation of the left view."""
    return _on_100_classes("moco_imagenet100_sassl", imagenet.moco_imagenet_sassl(), "method.queue_size=16384")


def _on_100_classes(name: str, config: ExperimentConfig, *overrides: str) -> ExperimentConfig:
    train, val = (f"{data_root()}/imagenet100/{split}" for split in ("train", "val"))
    return apply_overrides(
        config,
        [
            f"name={name}",
            f"data.path={train}",
            f"evaluate.train.path={train}",
            f"evaluate.test.path={val}",
            "train.global_batch=512",
            "train.accumulate=2",
            "train.epochs=200",
            "scaling.num_workers=4",
            *overrides,
        ],
    )
