"""ImageNet-1k with the settings of the papers, for eight GPUs; the `_sassl` forms only add style augmentation, as in SASSL's section 4.

The data are WebDataset or Parquet shards or class folders under `RAY_SASSL_DATA` (default `data`): `imagenet/train` and `imagenet/val`.
SASSL's paper trains for 1,000 epochs (`train.epochs`). For that length BYOL's official code has other settings: `optim.base_lr=0.2
optim.weight_decay=1.5e-6 method.base_momentum=0.996`.
"""

from __future__ import annotations

from ray_sassl.backbones import BackboneConfig
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig, PoolConfig, ScalingConfig, StreamConfig
from ray_sassl.data import DataConfig
from ray_sassl.experiments import data_root
from ray_sassl.methods.byol import Config as BYOL
from ray_sassl.methods.moco import Config as MoCo
from ray_sassl.methods.simclr import Config as SimCLR
from ray_sassl.plugins import load_plugin
from ray_sassl.style.stylizers import neural_stylizer
from ray_sassl.train.loop import TrainConfig
from ray_sassl.train.optim import OptimConfig
from ray_sassl.views import recipes


def simclr_imagenet() -> ExperimentConfig:
    """SimCLR, ResNet-50, batch 4,096, LARS, 100 epochs on eight GPUs.

    Chen et al. 2020, section 2.2 and appendix B.1: LARS, rate 0.075 sqrt(batch), weight decay 1e-6, 10 epochs of warm-up. The paper's
    linear probe after 1,000 epochs: 69.3 %.
    """
    return ExperimentConfig(
        name="simclr_imagenet",
        views=recipes.simclr(224),
        method=SimCLR(),
        train=TrainConfig(epochs=100, global_batch=4096, precision="bfloat16"),
        optim=OptimConfig(name="lars", base_lr=0.075, lr_scaling="sqrt", weight_decay=1e-6, warmup_epochs=10),
        **_common(zero_init_residual=True),
    )


def moco_imagenet() -> ExperimentConfig:
    """MoCo v2, ResNet-50, batch 256, SGD, 200 epochs on eight GPUs.

    Chen, Fan et al. 2020: queue 65,536, temperature 0.2, MLP head, rate 0.03, cosine, weight decay 1e-4, shuffling BN. The paper's linear
    probe: 67.5 % after 200 epochs, 71.1 % after 800.
    """
    return ExperimentConfig(
        name="moco_imagenet",
        views=recipes.moco_v2(224),
        method=MoCo(bn="shuffle"),
        train=TrainConfig(epochs=200, global_batch=256, precision="bfloat16"),
        optim=OptimConfig(name="sgd", base_lr=0.03, weight_decay=1e-4),
        **_common(),
    )


def byol_imagenet() -> ExperimentConfig:
    """BYOL, ResNet-50, batch 4,096, LARS, 300 epochs on eight GPUs.

    Grill et al. 2020, section 3.3 and its published code for 300 epochs: rate 0.3 for a batch of 256, weight decay 1e-6, 10 epochs of
    warm-up, momentum from 0.99. The paper's linear probe: 72.5 % after 300 epochs, 74.3 % after 1,000.
    """
    return ExperimentConfig(
        name="byol_imagenet",
        views=recipes.byol(224),
        method=BYOL(base_momentum=0.99),
        train=TrainConfig(epochs=300, global_batch=4096, precision="bfloat16"),
        optim=OptimConfig(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10),
        **_common(zero_init_residual=True),
    )


def simclr_imagenet_sassl() -> ExperimentConfig:
    """`simclr_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(simclr_imagenet())


def moco_imagenet_sassl() -> ExperimentConfig:
    """`moco_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(moco_imagenet())


def byol_imagenet_sassl() -> ExperimentConfig:
    """`byol_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(byol_imagenet())


def _common(*, zero_init_residual: bool = False) -> dict:
    train, val = (DataConfig(path=f"{data_root()}/imagenet/{split}") for split in ("train", "val"))
    return {
        "data": train,
        "backbone": BackboneConfig(name="resnet50", zero_init_residual=zero_init_residual),
        "evaluate": EvaluateConfig(train=train, test=val),
        "scaling": ScalingConfig(num_workers=8, use_gpu=True),
    }


def _with_style(config: ExperimentConfig) -> ExperimentConfig:
    """The config with four stylizers at first, at half a GPU each, besides the trainers' eight GPUs; the pool may grow to eight. They use
    the published network if this machine has its weights, else `swift`."""
    stylizer = load_plugin("ray_sassl.style.stylizers", neural_stylizer()).Config()
    pool = StreamConfig(pool=PoolConfig(min=2, max=8, initial=4, num_gpus=0.5))
    return config.model_copy(update={"name": f"{config.name}_sassl", "stylize": stylizer, "stream": pool})
