"""The demo: it takes minutes on two cores, with the embedded data set and without the network."""

from __future__ import annotations

from ray_sassl.backbones import BackboneConfig
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.methods.simclr import Config as SimCLR
from ray_sassl.style.config import SasslConfig
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.train.config import OptimConfig, TrainConfig
from ray_sassl.views.recipes import simclr


def demo_plain() -> ExperimentConfig:
    """The demo without style augmentation: SimCLR, ResNet-20, shapes in styles that carry no information about them.

    The embedded data set's labels are shapes; palette and texture are drawn independently of them. The views are SimCLR's for small
    images, with crops that keep most of the shape. About two minutes on two cores. Expect a kNN top-1 of 0.25 to 0.4.
    """
    views = simclr(32)
    view = views.left.model_copy(update={"crop_scale": (0.4, 1.0)})
    return ExperimentConfig(
        name="demo_plain",
        data=DataConfig(path="synthetic"),
        views=views.model_copy(update={"left": view, "right": view}),
        backbone=BackboneConfig(name="resnet20"),
        method=SimCLR(temperature=0.2, projector_hidden_size=256, embedding_size=64),
        train=TrainConfig(epochs=5, global_batch=128, log_every=5, checkpoint_every=100, evaluate_every=1000),
        optim=OptimConfig(base_lr=0.6, weight_decay=1e-4, warmup_epochs=0.5),
        evaluate=EvaluateConfig(train=DataConfig(path="synthetic"), test=DataConfig(path="synthetic:test"), size_px=32),
    )


def demo() -> ExperimentConfig:
    """The demo with style augmentation: one view of each image takes the colors of another image.

    Like `demo_plain`, with SASSL and the closed-form stylizer `color_statistics`, stronger than the paper's default, since colors carry no
    information here. Expect a kNN top-1 of 0.45 to 0.6.
    """
    return demo_plain().model_copy(
        update={"name": "demo", "stylize": ColorStatistics(), "sassl": SasslConfig(prob=0.8, alpha=(0.5, 1.0), beta=(0.5, 1.0))}
    )
