"""Distillation of a frozen teacher's features: Romero, Ballas, Kahou, Chassang, Gatta and Bengio 2015, "FitNets: Hints for Thin Deep Nets"
(arXiv 1412.6550), with the cosine distance of Ranzinger et al. 2024 (arXiv 2312.06709, section 3.3) in place of the squared one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.backbones import PUBLISHED, BackboneConfig, build_backbone
from ray_sassl.files.paths import LocalPath
from ray_sassl.methods import MethodConfig
from ray_sassl.methods.heads import Count
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.heads import mlp_head
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast


class Config(MethodConfig):
    """Distillation.

    Attributes:
        teacher: The encoder whose features are learned, as in `backbone.weights`: a run, a checkpoint, a file, `timm:NAME` or
            `torchvision:NAME`. Its features are computed where images are stylized, not by the trainers. Without one it is the encoder as
            the run starts, and the trainers compute its features: a run that starts from other weights then keeps to them.
        teacher_backbone: The teacher's network; needed for a file that does not say so.
        predictor_hidden_size: Width of the hidden layers of the head that predicts the teacher's features.
        predictor_layers: Linear layers of that head.
    """

    teacher: Annotated[str | None, LocalPath(prefixes=PUBLISHED)] = None
    teacher_backbone: BackboneConfig | None = None
    predictor_hidden_size: Count = 2048
    predictor_layers: Count = 2

    @property
    def num_targets(self) -> int:
        return 0 if self.teacher is None or self.teacher_backbone is None else _width(self.teacher_backbone.model_dump_json())

    def build(self, backbone: nn.Module, num_features: int) -> Distillation:
        return Distillation(self, backbone, num_features)


@lru_cache(maxsize=4)
def _width(backbone: str) -> int:
    with torch.device("meta"):
        return build_backbone(BackboneConfig.model_validate_json(backbone))[1]


class Distillation(Method):
    """From the left view, which style augmentation stylizes, the student predicts the teacher's features of the right view.

    Differs from the paper: the last features are predicted, not those of a hidden layer, by their direction, and from another view.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        width = config.num_targets or num_features
        self.predictor = mlp_head(num_features, config.predictor_hidden_size, width, config.predictor_layers)
        sync_batchnorm.convert(self)
        self.start = None if config.num_targets else _as_buffers(copy.deepcopy(backbone))

    def forward(
        self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None, targets: Tensor | None = None
    ) -> StepOutput:
        """As in the contract, with the teacher's features (B, T) if there is one. The chance loss is that of unrelated directions,
        and the metric `constant_loss` that of the best prediction that is equal for all images."""
        if self.start is not None:
            with torch.no_grad():
                targets = self.start.eval()(views[1])
        assert targets is not None, "the stream has no features of the teacher"
        predictions = self.predictor(self.backbone(views[0]))
        with no_autocast(predictions):
            p, t = at_least_float32(predictions), at_least_float32(targets)
            loss = distillation_loss(p, t)
            constant = 1 - F.normalize(t, dim=1).mean(0).norm()
        return StepOutput(loss, p.detach(), 1.0, {"constant_loss": constant.detach()})


def distillation_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """The mean cosine distance of predictions (B, T) from the teacher's features (B, T), in [0, 2]."""
    return 1 - F.cosine_similarity(predictions, targets.detach(), dim=1).mean()


def _as_buffers(module: nn.Module) -> nn.Module:
    """The module with its parameters as buffers, which are saved and never trained or moved."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())
    return module
