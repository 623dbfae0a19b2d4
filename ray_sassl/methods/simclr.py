"""SimCLR: Chen, Kornblith, Norouzi and Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv 2002.05709)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods import Method, MethodConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.gather import all_gather_with_gradient, rank, world_size
from ray_sassl.nn.heads import mlp_head
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.types import StepOutput


class Config(MethodConfig):
    """SimCLR.

    Attributes:
        temperature: Of NT-Xent; 0.1 for ImageNet (section 6 and the official code), 0.5 for CIFAR-10 (appendix B.9).
        projector_hidden_size: Width of the projector's hidden layers; 2048, as wide as the features of ResNet-50 (section 4.2).
        embedding_size: Width of the embeddings (section 4.2).
        projector_layers: Linear layers of the projector (section 4.2: one hidden layer); SimCLR v2 has 3.
        projector_last_bn: Batch normalisation of the embeddings, as in the official code.
        bn: "sync" normalises over the batches of all workers (section 2.2, "Global BN"), "plain" over each worker's own.
    """

    temperature: float = Field(default=0.1, gt=0)
    projector_hidden_size: int = Field(default=2048, ge=1)
    embedding_size: int = Field(default=128, ge=1)
    projector_layers: int = Field(default=2, ge=1)
    projector_last_bn: bool = True
    bn: Literal["sync", "plain"] = "sync"

    def build(self, backbone: nn.Module, num_features: int) -> SimCLR:
        return SimCLR(self, backbone, num_features)


class SimCLR(Method):
    """Each view must find the other view of its image among all other views of the global batch.

    Both views pass through the network as one batch, so that batch normalisation sees both, as in the official code.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp_head(
            num_features, config.projector_hidden_size, config.embedding_size, config.projector_layers, last_bn=config.projector_last_bn
        )
        if config.bn == "sync":
            sync_batchnorm.convert(self)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        x = torch.cat(list(views))  # (2B, 3, H, W)
        z1, z2 = self.projector(self.backbone(x)).chunk(2)  # (B, D) each
        with no_autocast(z1):
            logits, positives = nt_xent_logits(at_least_float32(z1), at_least_float32(z2), self.config.temperature)
            loss = F.cross_entropy(logits, positives)
        chance_loss = math.log(logits.shape[1] - 1)
        return StepOutput(loss, z1.detach(), chance_loss, self._metrics(logits.detach(), positives))

    def _metrics(self, logits: Tensor, positives: Tensor) -> dict[str, Tensor]:
        similarity = logits.gather(1, positives[:, None]).mean() * self.config.temperature
        top1 = (logits.argmax(1) == positives).float().mean()
        return {"positive_similarity": similarity, "instance_top1": top1}


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent, the normalised temperature-scaled cross-entropy (equation 1), mean over this worker's 2B views.

    Args:
        z1: (B, D) embeddings of the first views, of any length; of the other workers too, these are gathered with gradients.
        z2: (B, D) embeddings of the second views, in the same order.
        temperature: Divides the cosine similarities.
    """
    return F.cross_entropy(*nt_xent_logits(z1, z2, temperature))


def nt_xent_logits(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy that NT-Xent is: logits (2B, 2N) of this worker's views against those of the N images of all workers, each
    view's own entry -inf, and (2B,) the columns of the positives."""
    z1, z2 = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    batch_size, num_images = len(z1), len(z1) * world_size()
    candidates = torch.cat([all_gather_with_gradient(z1), all_gather_with_gradient(z2)])  # (2N, D)
    first = torch.arange(batch_size, device=z1.device) + rank() * batch_size
    own = torch.cat([first, first + num_images])
    logits = torch.cat([z1, z2]) @ candidates.T / temperature
    logits = logits.scatter(1, own[:, None], -math.inf)
    return logits, own.roll(batch_size)
