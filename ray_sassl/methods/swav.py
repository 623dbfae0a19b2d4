"""SwAV: Caron, Misra, Mairal, Goyal, Bojanowski and Joulin 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments" (arXiv 2006.09882)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.heads import Count, ProjectorConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.gather import all_gather, all_reduce, rank, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.multi_crop import encode_by_size
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.nn.queue import EmbeddingQueue


class Config(ProjectorConfig):
    """SwAV.

    The official code counts the two schedules in iterations and epochs; here they are shares of the run, which each method receives.

    Attributes:
        temperature: Temperature of the predictions (section 3.1; the official code: 0.1).
        epsilon: Smoothness of the codes (section 3.1 and the official code: 0.05); below 0.025, exp(-2 / epsilon) approaches the smallest
            float32.
        sinkhorn_iterations: Iterations of the Sinkhorn-Knopp algorithm (section 3.1: 3).
        num_prototypes: Clusters (the official code: 3,000 for the 1,000 classes of ImageNet).
        prototypes_frozen: Share of the run, from its start, in which the prototypes are not trained. In the official code the first epoch:
            0.01 is one of 100.
        queue_size: Embeddings of earlier batches, for each of the two large views, that are used to compute codes; 3,840 in the official
            code with a batch of 256, none with 4,096. It helps if the global batch is smaller than the number of prototypes.
        queue_start: Share of the run after which the queue is used, if it is full by then; in the official code the 15th of 200 epochs. It
            is filled from the first step.
        projector_hidden_size: Width of the projector's hidden layer (the official code: 2048).
        embedding_size: Width of the embeddings (the official code: 128).
        projector_layers: Linear layers of the projector (the official code: 2).
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own.
    """

    takes_small_views: ClassVar[bool] = True
    paper_views: ClassVar[str] = "swav"

    temperature: float = Field(default=0.1, gt=0)
    epsilon: float = Field(default=0.05, ge=0.025)
    sinkhorn_iterations: int = Field(default=3, ge=1)
    num_prototypes: int = Field(default=3000, ge=2)
    prototypes_frozen: float = Field(default=0.01, ge=0, le=1)
    queue_size: int = Field(default=0, ge=0)
    queue_start: float = Field(default=0.075, ge=0, lt=1)
    projector_hidden_size: Count = 2048
    embedding_size: Count = 128
    projector_layers: Count = 2

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        if self.queue_size == 0 and self.queue_start != type(self).model_fields["queue_start"].default:
            raise ValueError(f"queue_start={self.queue_start} has no effect with queue_size=0; set queue_size")
        return self

    def build(self, backbone: nn.Module, num_features: int) -> SwAV:
        return SwAV(self, backbone, num_features)


class SwAV(Method):
    """From one view of an image, the network predicts the cluster that another view is assigned to; clusters are equally filled.

    Codes come from the two large views, predictions from all. Views of one size pass through the backbone as one batch, and the embeddings
    of all sizes through the projector as one, as in the official code. Prototypes have length 1 after every update.
    """

    queue_is_open: Tensor
    num_queued: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features)
        self.prototypes = nn.Parameter(F.normalize(torch.randn(config.num_prototypes, config.embedding_size), dim=1))
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        num_queues = 2 if config.queue_size else 0
        self.queues = nn.ModuleList(EmbeddingQueue(config.queue_size, config.embedding_size) for _ in range(num_queues))
        self.register_buffer("num_queued", torch.zeros((), dtype=torch.int64))
        self.register_buffer("queue_is_open", torch.tensor(config.queue_start == 0))

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        config = self.config
        projected = self.projector(encode_by_size(self.backbone, views))  # (V * B, D)
        with no_autocast(projected):
            z = F.normalize(at_least_float32(projected), dim=1)
            scores = (z @ self.prototypes.T).chunk(len(views))  # V x (B, K)
            codes = self._codes(scores[:2], z.chunk(len(views))[:2])
            loss = swav_loss(scores, codes, config.temperature)
        first = projected.chunk(len(views))[0].detach()
        return StepOutput(loss, first, math.log(config.num_prototypes), self._metrics(scores[0].detach()))

    def frozen_parameters(self, progress: float) -> list[nn.Parameter]:
        return [self.prototypes] if progress < self.config.prototypes_frozen else []

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Differs from the official code, which normalizes the prototypes before a step, not after it; that is equivalent."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.queue_is_open.fill_(progress >= self.config.queue_start)

    @torch.no_grad()
    def _codes(self, scores: Sequence[Tensor], embeddings: Sequence[Tensor]) -> list[Tensor]:
        """Codes (B, K) of the two large views, computed with the queues as before this step; each worker uses a share of them."""
        config = self.config
        if not self.queues:
            return [sinkhorn(own, config.epsilon, config.sinkhorn_iterations) for own in scores]
        takes_part = self.queue_is_open & (self.num_queued >= config.queue_size)
        codes = []
        for queue, own, z in zip(self.queues, scores, embeddings, strict=True):
            assert isinstance(queue, EmbeddingQueue)
            older = queue.embeddings[rank() :: world_size()] @ self.prototypes.T
            older = older.masked_fill(~takes_part, -math.inf)
            codes.append(sinkhorn(torch.cat([own, older]), config.epsilon, config.sinkhorn_iterations)[: len(own)])
            if self.training:
                queue.write(all_gather(z))
        if self.training:
            self.num_queued.add_(len(embeddings[0]) * world_size()).clamp_(max=config.queue_size)
        return codes

    def _metrics(self, scores: Tensor) -> dict[str, Tensor]:
        """How many prototypes the predictions of the first view are spread over: 1 if all images are in one cluster."""
        p = F.softmax(scores / self.config.temperature, dim=1).mean(0)
        return {"prototypes_in_use": torch.exp(-torch.xlogy(p, p).sum())}


def swav_loss(scores: Sequence[Tensor], codes: Sequence[Tensor], temperature: float) -> Tensor:
    """Cross-entropy of each view's prediction with every other view's codes (equation 2), mean over images and over these pairs.

    Args:
        scores: (B, K) cosines of the embeddings of all views with the prototypes.
        codes: (B, K) of the first views, rows summing to 1; without gradients.
        temperature: Divides the scores.
    """
    log_p = [F.log_softmax(score / temperature, dim=1) for score in scores]
    pairs = [(q, log_p[view]) for number, q in enumerate(codes) for view in range(len(scores)) if view != number]
    return torch.stack([-(q * prediction).sum(1).mean() for q, prediction in pairs]).mean()


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, num_iterations: int) -> Tensor:
    """Codes (B, K) that sum to 1 for each row and fill all prototypes nearly alike over the rows of all workers (equations 3 to 5).

    The marginals of the paper's Q are constant factors, which the next normalization cancels, so they are left out here.

    Args:
        scores: (B, K) cosines of this worker's embeddings with the prototypes; a row of -inf is ignored, and its code is zero.
        epsilon: Smoothness; the smaller, the nearer codes are to one prototype.
        num_iterations: Normalizations over rows, each followed by one over prototypes.
    """
    q = ((scores - 1) / epsilon).exp()  # cosines are at most 1
    smallest = torch.finfo(q.dtype).tiny
    for _ in range(num_iterations):
        q = q / all_reduce(q.sum(0)).clamp_min(smallest)
        q = q / q.sum(1, keepdim=True).clamp_min(smallest)
    return q
