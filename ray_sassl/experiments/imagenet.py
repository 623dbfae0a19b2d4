"""ImageNet-1k with the settings of each method's paper or official code, for eight GPUs; `_sassl` forms only add style augmentation.

The data are WebDataset or Parquet shards or class folders under `RAY_SASSL_DATA` (default `data`): `imagenet/train` and `imagenet/val`.
Sources are named in the docstrings: a paper's section, or a file of the authors' repository, which was read; docs/papers.md lists what
differs. Experiments are composed on the command line: any of them takes `stylize=magenta` or `stylize=swift`, another `views=...`, or
`train.epochs`, so only combinations that a paper reports have a name of their own.
"""

from __future__ import annotations

from ray_sassl.backbones import BackboneConfig
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import EvaluateConfig, ExperimentConfig, PoolConfig, ScalingConfig, StreamConfig
from ray_sassl.data import DataConfig
from ray_sassl.experiments import data_root
from ray_sassl.methods.barlow_twins import Config as BarlowTwins
from ray_sassl.methods.byol import Config as BYOL
from ray_sassl.methods.dino import Config as DINO
from ray_sassl.methods.distill import Config as Distill
from ray_sassl.methods.lejepa import Config as LeJEPA
from ray_sassl.methods.moco import Config as MoCo
from ray_sassl.methods.moco_v3 import Config as MoCoV3
from ray_sassl.methods.simclr import Config as SimCLR
from ray_sassl.methods.simsiam import Config as SimSiam
from ray_sassl.methods.swav import Config as SwAV
from ray_sassl.methods.vicreg import Config as VICReg
from ray_sassl.style.stylizers.magenta import Config as Magenta
from ray_sassl.train.config import OptimConfig, TrainConfig
from ray_sassl.views import recipes
from ray_sassl.views.recipes import ViewsConfig


def simclr_imagenet() -> ExperimentConfig:
    """SimCLR, ResNet-50, batch 4,096, LARS, 100 epochs on eight GPUs.

    Chen et al. 2020, section 2.2 and appendix B.1: LARS, rate 0.075 sqrt(batch), weight decay 1e-6, 10 epochs of warm-up; the README of
    google-research/simclr has the same command with a weight decay of 1e-4 and names a probe of 64.5 %.
    """
    return ExperimentConfig(
        name="simclr_imagenet",
        views=recipes.simclr(224),
        method=SimCLR(),
        train=TrainConfig(epochs=100, global_batch=4096, precision="bfloat16"),
        optim=OptimConfig(name="lars", base_lr=0.075, lr_scaling="sqrt", weight_decay=1e-6, warmup_epochs=10, warmup_ramp="s/n"),
        **_common(zero_init_residual=True),
    )


def moco_imagenet() -> ExperimentConfig:
    """MoCo v2, ResNet-50, batch 256, SGD, 200 epochs on eight GPUs.

    facebookresearch/moco, README and main_moco.py: `--mlp --moco-t 0.2 --aug-plus --cos`, rate 0.03 that changes with the epoch, weight
    decay 1e-4 of all parameters, queue 65,536, shuffling BN. Their linear probe: 67.5 % after 200 epochs, 71.1 % after 800.
    """
    return ExperimentConfig(
        name="moco_imagenet",
        views=recipes.moco_v2(224),
        method=MoCo(bn="shuffle"),
        train=TrainConfig(epochs=200, global_batch=256, precision="bfloat16"),
        optim=OptimConfig(name="sgd", base_lr=0.03, weight_decay=1e-4, decay="all", lr_changes="epoch"),
        **_common(),
    )


def byol_imagenet() -> ExperimentConfig:
    """BYOL, ResNet-50, batch 4,096, LARS, 300 epochs on eight GPUs.

    deepmind-research/byol/configs/byol.py, presets for 300 epochs: rate 0.3 for a batch of 256, weight decay 1e-6, momentum from 0.99; 10
    epochs of warm-up. Linear probe in the paper (Grill et al. 2020): 72.5 % after 300 epochs, 74.3 % after 1,000.
    """
    return ExperimentConfig(
        name="byol_imagenet",
        views=recipes.byol(224),
        method=BYOL(base_momentum=0.99),
        train=TrainConfig(epochs=300, global_batch=4096, precision="bfloat16", schedules="s/n"),
        optim=OptimConfig(name="lars", base_lr=0.3, weight_decay=1e-6, warmup_epochs=10, warmup_ramp="s/n"),
        **_common(zero_init_residual=True),
    )


def simsiam_imagenet() -> ExperimentConfig:
    """SimSiam, ResNet-50, batch 512, SGD, 100 epochs on eight GPUs.

    facebookresearch/simsiam, README and main_simsiam.py: rate 0.05 for a batch of 256 that changes with the epoch, `--fix-pred-lr`, weight
    decay 1e-4 of all parameters, MoCo v2's views. Their linear probe: 68.1 %.
    """
    return ExperimentConfig(
        name="simsiam_imagenet",
        views=recipes.moco_v2(224),
        method=SimSiam(predictor_lr="constant"),
        train=TrainConfig(epochs=100, global_batch=512, precision="bfloat16"),
        optim=OptimConfig(name="sgd", base_lr=0.05, weight_decay=1e-4, decay="all", lr_changes="epoch"),
        **_common(),
    )


def barlow_twins_imagenet() -> ExperimentConfig:
    """Barlow Twins, ResNet-50, batch 2,048, LARS, 1,000 epochs on eight GPUs.

    facebookresearch/barlowtwins, main.py: rates 0.2 for weights and 0.0048 for biases and norm layers, for a batch of 256, falling to a
    thousandth; weight decay 1e-6, 10 epochs of warm-up, lambda 0.0051. Their linear probe: 73.5 %.
    """
    return ExperimentConfig(
        name="barlow_twins_imagenet",
        views=recipes.byol(224),
        method=BarlowTwins(),
        train=TrainConfig(epochs=1000, global_batch=2048, precision="bfloat16"),
        optim=_barlow_lars(0.2, 2048).model_copy(update={"bias_lr": 0.0048}),
        **_common(zero_init_residual=True),
    )


def vicreg_imagenet() -> ExperimentConfig:
    """VICReg, ResNet-50, batch 512, LARS, 100 epochs on eight GPUs.

    facebookresearch/vicreg, README and main_vicreg.py, the command for one machine: rate 0.3 for a batch of 256, falling to a thousandth,
    weight decay 1e-6, 10 epochs of warm-up. That for 1,000 epochs, with a linear probe of 73.2 %, is `train.epochs=1000
    train.global_batch=2048 optim.base_lr=0.2 optim.final_lr=0.0016`.
    """
    return ExperimentConfig(
        name="vicreg_imagenet",
        views=recipes.byol(224),
        method=VICReg(),
        train=TrainConfig(epochs=100, global_batch=512, precision="bfloat16"),
        optim=_barlow_lars(0.3, 512),
        **_common(zero_init_residual=True),
    )


def swav_imagenet() -> ExperimentConfig:
    """SwAV, ResNet-50, batch 256 with a queue of 3,840, LARS, 200 epochs on eight GPUs.

    facebookresearch/swav, scripts/swav_200ep_bs256_pretrain.sh: rate 0.6 falling to 0.0006, weight decay 1e-6 and adaptation of all
    parameters (apex's LARC), prototypes frozen in the first epoch, the queue from epoch 15, two views of 224 px and six of 96 px; its
    deviation of the red channel is 0.228. Their linear probe: 72.7 %.
    """
    return ExperimentConfig(
        name="swav_imagenet",
        views=recipes.swav(224),
        method=SwAV(queue_size=3840, queue_start=15 / 200, prototypes_frozen=1 / 200),
        train=TrainConfig(epochs=200, global_batch=256, precision="bfloat16", pixel_std=(0.228, 0.224, 0.225)),
        optim=OptimConfig(name="lars", base_lr=0.6, final_lr=0.0006, weight_decay=1e-6, decay="all"),
        **_common(),
    )


def swav_large_imagenet() -> ExperimentConfig:
    """SwAV, ResNet-50, batch 4,096 without a queue, LARS, 800 epochs; 64 GPUs in the official script, here eight.

    facebookresearch/swav, scripts/swav_800ep_pretrain.sh: rate 4.8 falling to 0.0048, warm-up of 10 epochs from 0.3. Their linear probe:
    75.3 %, and 72.1, 73.9 and 74.6 % after 100, 200 and 400 epochs (`train.epochs`, with `method.prototypes_frozen` of one epoch).
    """
    config = swav_imagenet()
    ramp = {"base_lr": 0.3, "final_lr": 0.0048, "warmup_epochs": 10, "warmup_start_lr": 0.3, "warmup_ramp": "s/(n-1)"}
    return config.model_copy(
        update={
            "name": "swav_large_imagenet",
            "method": SwAV(prototypes_frozen=1 / 800),
            "train": config.train.model_copy(update={"epochs": 800, "global_batch": 4096}),
            "optim": config.optim.model_copy(update=ramp),
        }
    )


def dino_imagenet() -> ExperimentConfig:
    """DINO, ResNet-50, batch 512, SGD, 100 epochs on eight GPUs.

    facebookresearch/dino, README, "ResNet-50 and other convnets trainings", and the defaults of main_dino.py: rate 0.03 for a batch of 256
    falling to 1e-6, weight decay 1e-4, gradients of each parameter clipped to 3, 10 epochs of warm-up, teacher at temperature 0.04, crops
    from 0.14 and from 0.05 to 0.14. They name no score of this run (75.3 % is that of a longer one, whose settings we have not seen).
    """
    views = recipes.dino(224)
    crops = {"left": (0.14, 1.0), "right": (0.14, 1.0), "small": (0.05, 0.14)}
    return ExperimentConfig(
        name="dino_imagenet",
        views=views.model_copy(update={name: getattr(views, name).model_copy(update={"crop_scale": crop}) for name, crop in crops.items()}),
        method=DINO(teacher_temperature=0.04, teacher_warmup=0.0),
        train=TrainConfig(epochs=100, global_batch=512, precision="bfloat16", clip_norm=3.0, clip_scope="parameter", schedules="s/n"),
        optim=OptimConfig(name="sgd", base_lr=0.03, final_lr=1e-6, weight_decay=1e-4, warmup_epochs=10, warmup_ramp="s/(n-1)"),
        **_common(),
    )


def dino_vit_imagenet() -> ExperimentConfig:
    """DINO, ViT-S/16, batch 512, AdamW, 100 epochs on eight GPUs.

    facebookresearch/dino, README, "Vanilla DINO training", and the defaults of main_dino.py: rate 0.0005 for a batch of 256 falling to
    1e-6, weight decay from 0.04 to 0.4. Their scores: kNN 69.3 %, linear probe 74.0 %. Their stochastic depth of 0.1 is left out.
    """
    config = dino_imagenet()
    rates = {"name": "adamw", "base_lr": 0.0005, "weight_decay": 0.04, "final_weight_decay": 0.4}
    return config.model_copy(
        update={
            "name": "dino_vit_imagenet",
            "views": recipes.dino(224),
            "backbone": BackboneConfig(name="timm/vit_small_patch16_224"),
            "optim": config.optim.model_copy(update=rates),
        }
    )


def lejepa_imagenet() -> ExperimentConfig:
    """LeJEPA, ResNet-50, batch 512, AdamW, 100 epochs on eight GPUs.

    rbalestr-lab/lejepa, README: rate 5e-4 falling to a thousandth of it, weight decay 5e-4 for ResNets, two large and six local crops. The
    batch, the length and the warm-up are our choice.
    """
    return ExperimentConfig(
        name="lejepa_imagenet",
        views=recipes.lejepa(224),
        method=LeJEPA(),
        train=TrainConfig(epochs=100, global_batch=512, precision="bfloat16"),
        optim=OptimConfig(name="adamw", base_lr=5e-4, lr_scaling="none", weight_decay=5e-4, final_lr=5e-7, warmup_epochs=10),
        **_common(),
    )


def distill_imagenet() -> ExperimentConfig:
    """Distillation of DINO's ViT-S/16 into a ResNet-50, batch 512, AdamW, 100 epochs on eight GPUs.

    The teacher is timm's copy of the published weights. The settings are those of `lejepa_imagenet` with BYOL's pair of views: our choice.
    """
    update = {"name": "distill_imagenet", "views": recipes.byol(224), "method": Distill(teacher="timm:vit_small_patch16_224.dino")}
    return lejepa_imagenet().model_copy(update=update)


def moco_v3_imagenet() -> ExperimentConfig:
    """MoCo v3, ResNet-50, batch 4,096, LARS, 100 epochs on eight GPUs.

    facebookresearch/moco-v3, CONFIG.md and the defaults of main_moco.py: rate 0.6 for a batch of 256, weight decay 1e-6, temperature 1,
    momentum from 0.99, 10 epochs of warm-up, crops from 0.2. Their linear probe: 68.9 %; 72.8 % after 300 epochs with `optim.base_lr=0.3`,
    and 74.6 % after 1,000 with `optim.base_lr=0.3 optim.weight_decay=1.5e-6 method.base_momentum=0.996`.
    """
    return ExperimentConfig(
        name="moco_v3_imagenet",
        views=_moco_v3_views(0.2),
        method=MoCoV3(temperature=1.0, projector_layers=2, predictor_last_bn=False),
        train=TrainConfig(epochs=100, global_batch=4096, precision="bfloat16"),
        optim=OptimConfig(name="lars", base_lr=0.6, weight_decay=1e-6, warmup_epochs=10, warmup_ramp="s/n"),
        **_common(zero_init_residual=True),
    )


def moco_v3_vit_imagenet() -> ExperimentConfig:
    """MoCo v3, ViT-S/16, batch 1,024, AdamW, 300 epochs on eight GPUs.

    facebookresearch/moco-v3, CONFIG.md, "ViT-Small, 1-node (8-GPU)": rate 1.5e-4 for a batch of 256, weight decay 0.1 of all parameters, 40
    epochs of warm-up, temperature 0.2. Their linear probe with a batch of 4,096: 73.2 %. Their ViT-S has twelve heads, timm's six.
    """
    return ExperimentConfig(
        name="moco_v3_vit_imagenet",
        views=_moco_v3_views(0.08),
        method=MoCoV3(),
        train=TrainConfig(epochs=300, global_batch=1024, precision="bfloat16"),
        optim=OptimConfig(name="adamw", base_lr=1.5e-4, weight_decay=0.1, decay="all", warmup_epochs=40, warmup_ramp="s/n"),
        **_common(backbone="timm/vit_small_patch16_224"),
    )


def simclr_imagenet_1000() -> ExperimentConfig:
    """`simclr_imagenet` for 1,000 epochs. The paper's linear probe: 69.3 %."""
    return _longer(simclr_imagenet())


def moco_imagenet_1000() -> ExperimentConfig:
    """`moco_imagenet` for 1,000 epochs, the length of SASSL's tables; MoCo v2's own longest run has 800 (71.1 %)."""
    return _longer(moco_imagenet())


def byol_imagenet_1000() -> ExperimentConfig:
    """`byol_imagenet` for 1,000 epochs, with the official presets for that length.

    Rate 0.2, weight decay 1.5e-6, momentum from 0.996. Linear probe in the paper: 74.3 %.
    """
    return _longer(byol_imagenet(), "optim.base_lr=0.2", "optim.weight_decay=1.5e-6", "method.base_momentum=0.996")


def simclr_imagenet_sassl() -> ExperimentConfig:
    """`simclr_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(simclr_imagenet())


def moco_imagenet_sassl() -> ExperimentConfig:
    """`moco_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(moco_imagenet())


def byol_imagenet_sassl() -> ExperimentConfig:
    """`byol_imagenet` with style augmentation of the left view: p = 0.8, alpha and beta uniform in 0.1 to 0.3."""
    return _with_style(byol_imagenet())


def simclr_imagenet_1000_sassl() -> ExperimentConfig:
    """`simclr_imagenet_1000` with style augmentation of the left view."""
    return _with_style(simclr_imagenet_1000())


def moco_imagenet_1000_sassl() -> ExperimentConfig:
    """`moco_imagenet_1000` with style augmentation of the left view."""
    return _with_style(moco_imagenet_1000())


def byol_imagenet_1000_sassl() -> ExperimentConfig:
    """`byol_imagenet_1000` with style augmentation of the left view."""
    return _with_style(byol_imagenet_1000())


def moco_imagenet_sassl_painters() -> ExperimentConfig:
    """`moco_imagenet_sassl` with styles of Painter by Numbers (Kaggle), from the bank `banks/painters.safetensors`."""
    return _with_bank("painters")


def moco_imagenet_sassl_dtd() -> ExperimentConfig:
    """`moco_imagenet_sassl` with styles of the Describable Textures Dataset, from the bank `banks/dtd.safetensors`."""
    return _with_bank("dtd")


def moco_imagenet_sassl_inaturalist() -> ExperimentConfig:
    """`moco_imagenet_sassl` with styles of iNaturalist 2021, from the bank `banks/inaturalist.safetensors`."""
    return _with_bank("inaturalist")


def moco_imagenet_sassl_retinopathy() -> ExperimentConfig:
    """`moco_imagenet_sassl` with styles of Diabetic Retinopathy (Kaggle), from the bank `banks/retinopathy.safetensors`."""
    return _with_bank("retinopathy")


def _common(*, backbone: str = "resnet50", zero_init_residual: bool = False) -> dict:
    train, val = (DataConfig(path=f"{data_root()}/imagenet/{split}") for split in ("train", "val"))
    return {
        "data": train,
        "backbone": BackboneConfig(name=backbone, zero_init_residual=zero_init_residual),
        "evaluate": EvaluateConfig(train=train, test=val),
        "scaling": ScalingConfig(num_workers=8, use_gpu=True),
    }


def _barlow_lars(base_lr: float, global_batch: int) -> OptimConfig:
    """LARS as in the official codes of Barlow Twins and VICReg: the rate ends at a thousandth of its peak."""
    final_lr = 0.001 * base_lr * global_batch / 256
    return OptimConfig(name="lars", base_lr=base_lr, final_lr=final_lr, weight_decay=1e-6, warmup_epochs=10, warmup_ramp="s/n")


def _moco_v3_views(smallest_crop: float) -> ViewsConfig:
    """BYOL's views with torchvision's default filter."""
    views = recipes.byol(224)
    changed = {"crop_scale": (smallest_crop, 1.0), "interpolation": "bilinear"}
    return views.model_copy(update={name: getattr(views, name).model_copy(update=changed) for name in ("left", "right")})


def _longer(config: ExperimentConfig, *overrides: str) -> ExperimentConfig:
    return apply_overrides(config, [f"name={config.name}_1000", "train.epochs=1000", *overrides])


def _with_style(config: ExperimentConfig) -> ExperimentConfig:
    """The config with the published network, and with four stylizers at first, at half a GPU each, besides the trainers' eight GPUs; the
    pool may grow to eight."""
    pool = StreamConfig(pool=PoolConfig(min=2, max=8, initial=4, num_gpus=0.5))
    return config.model_copy(update={"name": f"{config.name}_sassl", "stylize": Magenta(), "stream": pool})


def _with_bank(styles: str) -> ExperimentConfig:
    """`moco_imagenet_sassl` with the styles of another data set, made once: `ray-sassl stylize bank DATA stylize=magenta --out ...`."""
    bank = f"{data_root()}/banks/{styles}.safetensors"
    changes = [f"name=moco_imagenet_sassl_{styles}", "sassl.style_source=bank", f"sassl.bank={bank}"]
    return apply_overrides(moco_imagenet_sassl(), changes)
