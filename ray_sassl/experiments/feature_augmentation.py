"""Feature augmentation: Zhang et al. 2024, "Feature Augmentation for Self-supervised Contrastive Learning: A Closer Look" (arXiv
2410.12396).

Each experiment is a plain one with feature augmentation in parallel to the predictor, and with views of unequal strength, with which it
helps most; `sassl_fa_*` also have style augmentation (arXiv 2312.01187), which neither paper tried. The public texts leave open, and we
chose, the mask rates, which view is the strong one, and over how many images the gradients of batches of 512 are accumulated (4,096, the
batch of the plain experiments with LARS).
"""

from __future__ import annotations

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import cifar10, imagenet, imagenet100
from ray_sassl.methods.nnclr import Config as NNCLR
from ray_sassl.views.recipes import with_strong_left

_MASKS = ("method.fa.augmentation=mask", "method.fa.num_samples=4", "method.fa.reduction=free")
"""The paper's best setting for instance discrimination: masks, four samples, the free loss."""
_NEIGHBOR = ("method.fa.augmentation=nearest",)
"""The paper's setting for instance similarity: one nearest neighbor."""
_512_AT_A_TIME = ("train.accumulate=8", "train.epochs=200")
"""An update of 4,096 images in eight parts of 512 over all workers, each with its own negatives and batch statistics."""
_BATCH_512 = ("train.global_batch=512", "train.accumulate=2", "train.epochs=200")


def simclr_fa_cifar10() -> ExperimentConfig:
    """`simclr_cifar10` with four masks of each embedding in parallel to a predictor, and a stronger left view."""
    return _with_fa("simclr_fa_cifar10", cifar10.simclr_cifar10(), *_MASKS)


def moco_fa_cifar10() -> ExperimentConfig:
    """`moco_cifar10` with four masks of each key in parallel to a predictor, and a stronger left view."""
    return _with_fa("moco_fa_cifar10", cifar10.moco_cifar10(), *_MASKS)


def byol_fa_cifar10() -> ExperimentConfig:
    """`byol_cifar10` with the nearest of 16,384 earlier targets in the place of each target, and a stronger left view."""
    return _with_fa("byol_fa_cifar10", cifar10.byol_cifar10(), *_NEIGHBOR)


def sassl_fa_cifar10() -> ExperimentConfig:
    """Both papers together: `moco_fa_cifar10` with style augmentation of the left view."""
    return _with_fa("sassl_fa_cifar10", cifar10.moco_cifar10_sassl(), *_MASKS)


def simclr_fa_cifar10_cpu() -> ExperimentConfig:
    """`simclr_cifar10_cpu` with four masks of each embedding in parallel to a predictor, and a stronger left view."""
    return _with_fa("simclr_fa_cifar10_cpu", cifar10.simclr_cifar10_cpu(), *_MASKS, "method.predictor_hidden_size=512")


def moco_fa_cifar10_cpu() -> ExperimentConfig:
    """`moco_cifar10_cpu` with four masks of each key in parallel to a predictor, and a stronger left view."""
    return _with_fa("moco_fa_cifar10_cpu", cifar10.moco_cifar10_cpu(), *_MASKS, "method.predictor_hidden_size=512")


def byol_fa_cifar10_cpu() -> ExperimentConfig:
    """`byol_cifar10_cpu` with the nearest of 4,096 earlier targets in the place of each target, and a stronger left view."""
    return _with_fa("byol_fa_cifar10_cpu", cifar10.byol_cifar10_cpu(), *_NEIGHBOR, "method.fa.augmentation.support_size=4096")


def sassl_fa_cifar10_cpu() -> ExperimentConfig:
    """Both papers together: `moco_fa_cifar10_cpu` with style augmentation of the left view."""
    return _with_fa("sassl_fa_cifar10_cpu", cifar10.moco_cifar10_cpu_sassl(), *_MASKS, "method.predictor_hidden_size=512")


def simclr_fa_imagenet100() -> ExperimentConfig:
    """`simclr_imagenet100` with four masks of each embedding in parallel to a predictor, and a stronger left view.

    The paper's best linear top-1 on ImageNet-100 is 79.8 %, with masks and four samples.
    """
    return _with_fa("simclr_fa_imagenet100", imagenet100.simclr_imagenet100(), *_MASKS)


def moco_fa_imagenet100() -> ExperimentConfig:
    """`moco_imagenet100` with four masks of each key in parallel to a predictor, and a stronger left view."""
    return _with_fa("moco_fa_imagenet100", imagenet100.moco_imagenet100(), *_MASKS)


def byol_fa_imagenet100() -> ExperimentConfig:
    """`byol_imagenet100` with the nearest earlier target in the place of each target, and a stronger left view.

    The paper's linear top-1: 71.4 %, against 69.1 % of BYOL alone. The support set has 16,384 targets, an eighth of the images.
    """
    return _with_fa("byol_fa_imagenet100", imagenet100.byol_imagenet100(), *_NEIGHBOR)


def nnclr_imagenet100() -> ExperimentConfig:
    """NNCLR on ImageNet-100, as `simclr_imagenet100` with BYOL's views; a support set of 32,768, a quarter of the images."""
    config = imagenet100.simclr_imagenet100()
    return _with_nnclr("nnclr_imagenet100", config, "method.fa.augmentation.support_size=32768")


def sassl_fa_imagenet100() -> ExperimentConfig:
    """Both papers together: `moco_fa_imagenet100` with style augmentation of the left view."""
    return _with_fa("sassl_fa_imagenet100", imagenet100.moco_imagenet100_sassl(), *_MASKS)


def simclr_fa_imagenet() -> ExperimentConfig:
    """`simclr_imagenet` with four masks of each embedding in parallel to a predictor, and a stronger left view.

    512 images at a time, 200 epochs on eight GPUs. The paper's linear top-1 on ImageNet after 200 epochs: 70.9 %, with batches of 512 and
    gradient accumulation, where NNCLR has 70.8 % with 4,096. The public texts do not say which augmentation this is.
    """
    return _with_fa("simclr_fa_imagenet", imagenet.simclr_imagenet(), *_MASKS, *_512_AT_A_TIME)


def moco_fa_imagenet() -> ExperimentConfig:
    """`moco_imagenet` with four masks of each key in parallel to a predictor, and a stronger left view.

    Batch 512 in two parts, 200 epochs on eight GPUs.
    """
    return _with_fa("moco_fa_imagenet", imagenet.moco_imagenet(), *_MASKS, *_BATCH_512)


def byol_fa_imagenet() -> ExperimentConfig:
    """`byol_imagenet` with the nearest earlier target in the place of each target, and a stronger left view.

    512 images at a time, 200 epochs on eight GPUs; the support set is NNCLR's.
    """
    return _with_fa("byol_fa_imagenet", imagenet.byol_imagenet(), *_NEIGHBOR, "method.fa.augmentation.support_size=98304", *_512_AT_A_TIME)


def nnclr_imagenet() -> ExperimentConfig:
    """NNCLR, ResNet-50, support set 98,304, 512 images at a time, LARS, 200 epochs on eight GPUs.

    Dwibedi et al. 2021 (arXiv 2104.14548) with a batch of 4,096 in one part; LARS, its rate and BYOL's views are `byol_imagenet`'s. Linear
    top-1 after 200 epochs according to Zhang et al. 2024: 70.8 %.
    """
    return _with_nnclr("nnclr_imagenet", imagenet.byol_imagenet(), *_512_AT_A_TIME)


def sassl_fa_imagenet() -> ExperimentConfig:
    """Both papers together: `moco_fa_imagenet` with style augmentation of the left view."""
    return _with_fa("sassl_fa_imagenet", imagenet.moco_imagenet_sassl(), *_MASKS, *_BATCH_512)


def _with_fa(name: str, config: ExperimentConfig, *overrides: str) -> ExperimentConfig:
    """The config with feature augmentation by these overrides and a strong left view, which is also the one that is stylized, if any."""
    config = apply_overrides(config, [f"name={name}", *overrides])
    return config.model_copy(update={"views": with_strong_left(config.views)})


def _with_nnclr(name: str, config: ExperimentConfig, *overrides: str) -> ExperimentConfig:
    return apply_overrides(config.model_copy(update={"method": NNCLR()}), [f"name={name}", "views=byol_224", *overrides])
