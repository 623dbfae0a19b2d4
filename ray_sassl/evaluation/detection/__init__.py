"""Detection: an encoder as the backbone of Faster R-CNN (Ren et al. 2015, arXiv 1506.01497), trained and tested on data in VOC's form.

The defaults are the protocol of MoCo (He et al. 2020, arXiv 1911.05722, section 4.2 and its code) on VOC 2007 + 2012 with a ResNet-50-C4:
24,000 steps of 16 images, all layers trained, batch normalization trained over all workers.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ray_sassl.plugins import FrozenConfig

Pixels = Annotated[int, Field(ge=32)]
Share = Annotated[float, Field(gt=0, lt=1)]

REFERENCE_BATCH = 16
"""The batch that `learning_rate` is given for."""
_FPN_ONLY = ("fpn_channels", "hidden_size")


class DetectConfig(FrozenConfig):
    """Fine-tuning for detection.

    Attributes:
        architecture: "c4": proposals and regions use the second-last stage, and the last stage is the head of each region. "fpn": a feature
            pyramid (Lin et al. 2017, arXiv 1612.03144) over all stages with a head of two linear layers.
        train: Splits to train on, each `FOLDER/SPLIT`, or `SPLIT` if the data's folder itself has VOC's form. By default `trainval` of the
            folder, or of VOC2007 and VOC2012 if it contains them.
        test: Splits to measure on; by default `test` of the folder, or of VOC2007.
        steps: Optimizer updates.
        batch_size: Images per update, over all workers.
        learning_rate: Learning rate of SGD for a batch of 16; it is scaled linearly with the batch.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD, except for biases and the scales and shifts of norm layers.
        warmup_steps: Steps in which the learning rate rises linearly.
        decay_at: Shares of the training after which the learning rate falls to a tenth.
        train_px: Shorter side of the training images, drawn for each.
        test_px: Shorter side of the test images.
        max_px: Maximum longer side of both.
        batch_norm: "synced" is trained with the statistics of all workers' batches, also in the pyramid and in the head of "c4"; "frozen"
            keeps the encoder's statistics, scales and shifts.
        fpn_channels: Width of the pyramid.
        hidden_size: Width of the pyramid's head.
        rois_per_image: Regions per image that the head is trained on at each step.
        test_proposals: Regions per image that the head evaluates in a test.
        evaluate_every: Steps between measurements on the test set, the first before training; 0 measures only at the end.
        max_bad_fraction: Share of each split's images that may be damaged. They are left out and counted; if there are more, the job fails.
        checkpoint_every: Steps between checkpoints, from which a stopped run continues.
        seed: Seed of the new layers and of all draws.
    """

    architecture: Literal["c4", "fpn"] = "c4"
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    steps: int = Field(default=24_000, ge=1)
    batch_size: int = Field(default=REFERENCE_BATCH, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=100, ge=0)
    decay_at: tuple[Share, ...] = (0.75, 11 / 12)
    train_px: Annotated[tuple[Pixels, ...], Field(min_length=1)] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    test_px: Pixels = 800
    max_px: Pixels = 1333
    batch_norm: Literal["synced", "frozen"] = "synced"
    fpn_channels: int = Field(default=256, ge=1)
    hidden_size: int = Field(default=1024, ge=1)
    rois_per_image: int = Field(default=512, ge=4)
    test_proposals: int = Field(default=1000, ge=1)
    evaluate_every: int = Field(default=0, ge=0)
    checkpoint_every: int = Field(default=1000, ge=1)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        if self.architecture == "c4":
            for name in _FPN_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect with architecture='c4'; it belongs to 'fpn'")
        if max(*self.train_px, self.test_px) > self.max_px:
            raise ValueError(f"max_px={self.max_px} is less than the shorter side of some images ({max(*self.train_px, self.test_px)})")
        return self
