"""SimSiam: Chen and He 2020, "Exploring Simple Siamese Representation Learning" (arXiv 2011.10566)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Plain
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast


class Config(HeadsConfig):
    """SimSiam.

    Attributes:
        projector_hidden_size: Width of the projector's hidden layers (section 3, "Baseline settings").
        embedding_size: Width of the embeddings and of the predictions (section 3).
        projector_layers: Linear layers of the projector, each with batch normalization, the last without scale and shift (official
            code); 3 for ImageNet (section 3), 2 for CIFAR-10 (appendix D).
        predictor_hidden_size: Width of the predictor's hidden layer, a bottleneck of a quarter of the embeddings (section 3).
        predictor_layers: Linear layers of the predictor (section 3).
        predictor_lr: "constant" keeps the predictor's learning rate at its peak, which the paper finds a little better (section 4.2, table
            1); "decayed" is the paper's baseline.
        bn: "sync" normalizes over the batches of all workers (section 3), "plain" over each worker's own.
    """

    paper_views: ClassVar[str] = "moco_v2"
    projector_hidden_size: Count = 2048
    embedding_size: Count = 2048
    projector_layers: Count = 3
    predictor_hidden_size: Count = 512
    predictor_lr: Literal["decayed", "constant"] = "decayed"

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=True, needs_predictor=True, trains_targets=False)

    def build(self, backbone: nn.Module, num_features: int) -> SimSiam:
        return SimSiam(self, backbone, num_features)


class SimSiam(Method):
    """One network predicts, from one view, its own embedding of the other, which takes no gradient; without that it would collapse.

    Each view passes through the network by itself, so that batch normalization sees one view at a time, as in the official code.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features, last_bn=True, last_bn_affine=False)
        self.predictor = config.build_predictor()
        self.branches = config.build_branches()
        if config.bn == "sync":
            sync_batchnorm.convert(self)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        left, right = views
        z = {view: self.projector(self.backbone(x)) for view, x in enumerate((left, right))}  # (B, D) each
        t = {view: x.detach() for view, x in z.items()}
        pairs = self.branches.pairs(z, t, self.predictor, generator, sample_id)
        with no_autocast(z[0]):
            losses = [simsiam_loss(p, target) for p, target in pairs]
            loss = torch.stack(losses).sum() / len(self.branches.directions)
        similarity = -loss.detach() / self.branches.num_losses
        return StepOutput(loss, z[0].detach(), 0.0, {"positive_similarity": similarity})

    def constant_lr_parameters(self) -> list[nn.Parameter]:
        return list(self.predictor.parameters()) if self.config.predictor_lr == "constant" else []


def simsiam_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """-cos(prediction, target), both (B, D) of any length, mean over the batch (equation 1); the method takes the mean of both directions
    (equation 2). 0 for predictions orthogonal to their targets, -1 if all agree, also after a collapse."""
    return -F.cosine_similarity(at_least_float32(prediction), at_least_float32(target), dim=1).mean()
