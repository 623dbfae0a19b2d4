"""CIFAR-10: the usual benchmark of small-scale self-supervision, for a GPU (ResNet-18) and for CPUs (ResNet-20).

The data are Parquet shards under `RAY_SASSL_DATA` (default `data`): `cifar10/train-*.parquet` and `cifar10/test-*.parquet` with the
columns `image` (encoded) and `label`. Anything else: `data.path=... evaluate.train.path=... evaluate.test.path=...`.
"""

from __future__ import annotations

from ray_sassl.backbones import BackboneConfig
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.experiments import data_root
from ray_sassl.feature_aug.nearest import Config as Nearest
from ray_sassl.methods import MethodConfig
from ray_sassl.methods.barlow_twins import Config as BarlowTwins
from ray_sassl.methods.branches import FaConfig
from ray_sassl.methods.byol import Config as BYOL
from ray_sassl.methods.dino import Config as DINO
from ray_sassl.methods.lejepa import Config as LeJEPA
from ray_sassl.methods.moco import Config as MoCo
from ray_sassl.methods.moco_v3 import Config as MoCoV3
from ray_sassl.methods.nnclr import Config as NNCLR
from ray_sassl.methods.simclr import Config as SimCLR
from ray_sassl.methods.simsiam import Config as SimSiam
from ray_sassl.methods.swav import Config as SwAV
from ray_sassl.methods.vicreg import Config as VICReg
from ray_sassl.style.stylizers.swift import Config as Swift
from ray_sassl.train.config import OptimConfig, TrainConfig
from ray_sassl.views import recipes
from ray_sassl.views.recipes import ViewsConfig

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def simclr_cifar10() -> ExperimentConfig:
    """SimCLR, ResNet-18 with the CIFAR stem, batch 512, 200 epochs.

    Chen et al. 2020, appendix B.9 (temperature 0.5, no blur, color strength 0.5); SGD instead of LARS at this batch size. With batch 128
    and 200 epochs, lightly's benchmark has kNN top-1 0.847.
    """
    return _resnet18("simclr_cifar10", recipes.simclr(32), SimCLR(temperature=0.5, projector_hidden_size=512))


def moco_cifar10() -> ExperimentConfig:
    """MoCo v2, ResNet-18 with the CIFAR stem, batch 512, 200 epochs.

    The authors' CIFAR-10 demo: symmetric loss, queue 4,096, key momentum 0.99, temperature 0.1, split batch normalization.
    With batch 128 and 200 epochs, lightly's benchmark has kNN top-1 0.838.
    """
    method = MoCo(temperature=0.1, queue_size=4096, momentum=0.99, projector_hidden_size=512, symmetric=True, bn="split")
    return _resnet18("moco_cifar10", recipes.moco_v2(32), method)


def byol_cifar10() -> ExperimentConfig:
    """BYOL, ResNet-18 with the CIFAR stem, batch 512, 200 epochs.

    Grill et al. 2020 without blur; narrower heads. With batch 128 and 200 epochs, lightly's benchmark has kNN top-1 0.869.
    """
    method = BYOL(base_momentum=0.99, projector_hidden_size=1024, predictor_hidden_size=1024)
    return _resnet18("byol_cifar10", recipes.byol(32), method)


def nnclr_cifar10() -> ExperimentConfig:
    """NNCLR, ResNet-18 with the CIFAR stem, batch 512, 200 epochs.

    Dwibedi et al. 2021, with a support set of 16,384, since there are 50,000 images; views as SimCLR's. With batch 128 and 200 epochs,
    lightly's benchmark has kNN top-1 0.834.
    """
    method = NNCLR(embedding_size=128, fa=FaConfig(augmentation=Nearest(support_size=16_384)))
    return _resnet18("nnclr_cifar10", recipes.simclr(32), method)


def simclr_cifar10_sassl() -> ExperimentConfig:
    """`simclr_cifar10` with style augmentation of the left view."""
    return _with_style(simclr_cifar10())


def moco_cifar10_sassl() -> ExperimentConfig:
    """`moco_cifar10` with style augmentation of the left view."""
    return _with_style(moco_cifar10())


def byol_cifar10_sassl() -> ExperimentConfig:
    """`byol_cifar10` with style augmentation of the left view."""
    return _with_style(byol_cifar10())


def simclr_cifar10_cpu() -> ExperimentConfig:
    """SimCLR, ResNet-20, batch 256, 10 epochs, for two cores.

    ResNet-20 is He et al. 2016, section 4.2 (0.27 M parameters).
    """
    return _resnet20("simclr_cifar10_cpu", recipes.simclr(32), SimCLR(temperature=0.2, projector_hidden_size=256, embedding_size=128))


def moco_cifar10_cpu() -> ExperimentConfig:
    """MoCo v2, ResNet-20, batch 256, 10 epochs, for two cores: kNN top-1 0.51.

    The authors' CIFAR-10 demo, asymmetric and with plain batch normalization, which is cheaper.
    """
    method = MoCo(temperature=0.1, queue_size=4096, momentum=0.99, projector_hidden_size=256, embedding_size=128)
    return _resnet20("moco_cifar10_cpu", recipes.moco_v2(32), method)


def byol_cifar10_cpu() -> ExperimentConfig:
    """BYOL, ResNet-20, batch 256, 10 epochs, for two cores."""
    method = BYOL(base_momentum=0.98, projector_hidden_size=512, embedding_size=128, predictor_hidden_size=512)
    return _resnet20("byol_cifar10_cpu", recipes.byol(32), method)


def nnclr_cifar10_cpu() -> ExperimentConfig:
    """NNCLR, ResNet-20, batch 256, 10 epochs, for two cores; a support set of 4,096."""
    method = NNCLR(
        temperature=0.2,
        projector_hidden_size=256,
        embedding_size=128,
        predictor_hidden_size=512,
        fa=FaConfig(augmentation=Nearest(support_size=4096)),
    )
    return _resnet20("nnclr_cifar10_cpu", recipes.simclr(32), method)


def simsiam_cifar10_cpu() -> ExperimentConfig:
    """SimSiam, ResNet-20, batch 256, 10 epochs, for two cores.

    A projector of two layers, as in appendix D of Chen and He 2020.
    """
    method = SimSiam(projector_layers=2, projector_hidden_size=512, embedding_size=512, predictor_hidden_size=128)
    return _resnet20("simsiam_cifar10_cpu", recipes.simclr(32), method)


def moco_v3_cifar10_cpu() -> ExperimentConfig:
    """MoCo v3, ResNet-20, batch 256, 10 epochs, for two cores; the heads of its official code for ResNets, narrower."""
    method = MoCoV3(
        base_momentum=0.98,
        projector_layers=2,
        projector_hidden_size=512,
        embedding_size=128,
        predictor_hidden_size=512,
        predictor_last_bn=False,
    )
    return _resnet20("moco_v3_cifar10_cpu", recipes.byol(32), method)


def barlow_twins_cifar10_cpu() -> ExperimentConfig:
    """Barlow Twins, ResNet-20, batch 256, 10 epochs, for two cores; embeddings of width 512.

    The loss is scaled by 0.01: its gradients are a hundred times as long as SimCLR's, and SGD, unlike the paper's LARS, does not adapt to
    that.
    """
    method = BarlowTwins(loss_scale=0.01, projector_hidden_size=512, embedding_size=512)
    return _resnet20("barlow_twins_cifar10_cpu", recipes.byol(32), method)


def vicreg_cifar10_cpu() -> ExperimentConfig:
    """VICReg, ResNet-20, batch 256, 10 epochs, for two cores; embeddings of width 512."""
    method = VICReg(projector_hidden_size=512, embedding_size=512)
    return _resnet20("vicreg_cifar10_cpu", recipes.byol(32), method)


def swav_cifar10_cpu() -> ExperimentConfig:
    """SwAV, ResNet-20, batch 256, 10 epochs, for two cores; 100 prototypes, and two local crops instead of six.

    The rate is that of its official code (0.6 for a batch of 256); its gradients are a tenth as long as SimCLR's.
    """
    method = SwAV(num_prototypes=100, projector_hidden_size=256)
    return _resnet20("swav_cifar10_cpu", _with_two_small(recipes.swav(32)), method, base_lr=0.6)


def dino_cifar10_cpu() -> ExperimentConfig:
    """DINO, ResNet-20, batch 256, 10 epochs, for two cores; 1,024 outputs, and two local crops instead of eight.

    Crops are those that its official code advises for ResNets. The rate is SwAV's, since its gradients are as short.
    """
    method = DINO(base_momentum=0.99, num_outputs=1024, projector_hidden_size=512, embedding_size=128, projector_bn=True)
    views = recipes.dino(32)
    crops = {"left": (0.14, 1.0), "right": (0.14, 1.0), "small": (0.05, 0.14)}
    cropped = {name: getattr(views, name).model_copy(update={"crop_scale": crop}) for name, crop in crops.items()}
    return _resnet20("dino_cifar10_cpu", _with_two_small(views.model_copy(update=cropped)), method, base_lr=0.6)


def lejepa_cifar10_cpu() -> ExperimentConfig:
    """LeJEPA, ResNet-20, batch 256, 10 epochs, for two cores; embeddings of width 64, and two local crops instead of six.

    AdamW at the rate of the official minimal example (2e-3 for a batch of 256); its README has a weight decay of 5e-4 for ResNets and a
    last rate of a thousandth.
    """
    method = LeJEPA(projector_hidden_size=512, embedding_size=64)
    config = _resnet20("lejepa_cifar10_cpu", _with_two_small(recipes.lejepa(32)), method)
    optim = OptimConfig(name="adamw", base_lr=2e-3, weight_decay=5e-4, warmup_epochs=0.5, final_lr=2e-6)
    return config.model_copy(update={"optim": optim})


def simclr_cifar10_cpu_sassl() -> ExperimentConfig:
    """`simclr_cifar10_cpu` with style augmentation of the left view."""
    return _with_style(simclr_cifar10_cpu())


def moco_cifar10_cpu_sassl() -> ExperimentConfig:
    """`moco_cifar10_cpu` with style augmentation of the left view."""
    return _with_style(moco_cifar10_cpu())


def byol_cifar10_cpu_sassl() -> ExperimentConfig:
    """`byol_cifar10_cpu` with style augmentation of the left view."""
    return _with_style(byol_cifar10_cpu())


def _resnet18(name: str, views: ViewsConfig, method: MethodConfig) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        data=_data("train"),
        views=views,
        backbone=BackboneConfig(name="resnet18", stem="cifar"),
        method=method,
        train=TrainConfig(epochs=200, global_batch=512, pixel_mean=_MEAN, pixel_std=_STD),
        optim=OptimConfig(base_lr=0.03, weight_decay=5e-4, warmup_epochs=10 if "moco" not in name else 0),
        evaluate=_evaluate(),
    )


def _resnet20(name: str, views: ViewsConfig, method: MethodConfig, base_lr: float = 0.12) -> ExperimentConfig:
    return ExperimentConfig(
        name=name,
        data=_data("train"),
        views=views,
        backbone=BackboneConfig(name="resnet20"),
        method=method,
        train=TrainConfig(epochs=10, global_batch=256, pixel_mean=_MEAN, pixel_std=_STD),
        optim=OptimConfig(base_lr=base_lr, weight_decay=1e-4, warmup_epochs=0.5),
        evaluate=_evaluate(),
    )


def _with_style(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the small stylizer, since the published one needs 256 px to describe a style."""
    return config.model_copy(update={"name": f"{config.name}_sassl", "stylize": Swift()})


def _with_two_small(views: ViewsConfig) -> ViewsConfig:
    """The views with two local crops; one costs a quarter of a large view."""
    return views.model_copy(update={"num_small": 2})


def _data(split: str) -> DataConfig:
    return DataConfig(path=f"{data_root()}/cifar10/{split}-*.parquet")


def _evaluate() -> EvaluateConfig:
    return EvaluateConfig(train=_data("train"), test=_data("test"), size_px=32)
