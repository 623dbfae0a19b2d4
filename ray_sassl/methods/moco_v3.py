"""MoCo v3: Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision Transformers" (arXiv 2104.02057).

Differs from the paper: a ViT's position embeddings are the backbone's own (timm's are learned; the official code has fixed sines and
cosines).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Plain
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import sync_batchnorm
from ray_sassl.nn.ema import cosine_momentum, momentum_copy, update_momentum_copy
from ray_sassl.nn.gather import all_gather, rank, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.process.errors import UsageError


class Config(HeadsConfig):
    """MoCo v3.

    Attributes:
        temperature: Temperature of InfoNCE (section 5: 0.2); the official commands have 0.2 for ViTs, and 1.0 for ResNet-50.
        base_momentum: Momentum of the momentum encoder at the start; it rises to 1 along a cosine (official code: 0.99; 0.996 for 1,000
            epochs of ResNet-50).
        projector_hidden_size: Width of the projector's hidden layers (section 5, "MLP heads").
        embedding_size: Width of the embeddings and of the predictions (section 5).
        projector_layers: Linear layers of the projector, each with batch normalization, the last without scale and shift: 3 for ViTs
            (section 5), 2 for ResNets (official code).
        predictor_hidden_size: Width of the predictor's hidden layer (section 5).
        predictor_layers: Linear layers of the predictor (section 5).
        predictor_last_bn: Batch normalization, without scale and shift, of the predictions; the official code has it for ViTs.
        patch_embedding: "fixed" keeps a ViT's projection of patches at its random initialization, which makes training stable (section
            4.2); "trained" trains it; "auto" is "fixed" for backbones that have one.
        bn: "sync" normalizes over the batches of all workers (as the official code), "plain" over each worker's own.
        fa: Feature augmentation; `fa.architecture=basic` leaves the predictor out.
    """

    paper_views: ClassVar[str] = "byol"
    temperature: float = Field(default=0.2, gt=0)
    base_momentum: float = Field(default=0.99, ge=0, le=1)
    projector_hidden_size: Count = 4096
    embedding_size: Count = 256
    projector_layers: Count = 3
    predictor_last_bn: bool = True
    patch_embedding: Literal["auto", "fixed", "trained"] = "auto"

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=True, needs_predictor=False, trains_targets=False)

    def build(self, backbone: nn.Module, num_features: int) -> MoCoV3:
        return MoCoV3(self, backbone, num_features)


class MoCoV3(Method):
    """The prediction from one view must identify the momentum encoder's embedding of the other view among those of the global batch.

    Each view passes through the networks by itself, as in the official code. The momentum encoder keeps its own batch statistics, from its
    own forward passes.
    """

    momentum: Tensor

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        _fix_patch_embedding(backbone, config.patch_embedding)
        self.projector = config.build_projector(num_features, last_bn=True, last_bn_affine=False)
        self.branches = config.build_branches()
        form = {"last_bn": config.predictor_last_bn, "last_bn_affine": False, "last_bias": False}
        self.predictor = config.build_predictor(**form) if config.has_predictor else None
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        self.key_backbone = momentum_copy(self.backbone)
        self.key_projector = momentum_copy(self.projector)
        self.register_buffer("momentum", torch.tensor(config.base_momentum))

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        left, right = views
        z = {view: self.projector(self.backbone((left, right)[view])) for view in self.branches.prediction_views}  # (B, D) each
        with torch.no_grad():
            k = {view: self.key_projector(self.key_backbone((left, right)[view])) for view in self.branches.target_views}
        pairs = self.branches.pairs(z, k, self.predictor, generator, sample_id)
        with no_autocast(z[0]):
            logits = [in_batch_logits(q, key, self.config.temperature) for q, key in pairs]
            loss = torch.stack([2 * self.config.temperature * _cross_entropy_with_own(rows) for rows in logits]).sum()
        chance_loss = 2 * self.config.temperature * len(pairs) * math.log(len(left) * world_size())
        return StepOutput(loss, z[0].detach(), chance_loss, self._metrics(logits[0].detach()))

    def teacher(self) -> tuple[nn.Module, nn.Module]:
        return self.key_backbone, self.key_projector

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(self.config.base_momentum, progress)
        update_momentum_copy(self.key_backbone, self.backbone, momentum)
        update_momentum_copy(self.key_projector, self.projector, momentum)
        self.momentum.fill_(momentum)

    def _metrics(self, logits: Tensor) -> dict[str, Tensor]:
        own = _own_columns(logits)
        similarity = logits.gather(1, own[:, None]).mean() * self.config.temperature
        return {
            "positive_similarity": similarity,
            "instance_top1": (logits.argmax(1) == own).float().mean(),
            "momentum": self.momentum.clone(),
        }


def moco_v3_loss(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """InfoNCE with the keys of the global batch, times 2 tau (equation 1 and algorithm 1), mean over this worker's queries; the arguments
    are those of `in_batch_logits`."""
    return 2 * temperature * _cross_entropy_with_own(in_batch_logits(q, k, temperature))


def in_batch_logits(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """Logits (B, N) of this worker's queries against the keys of all workers; a row's positive is in the column of its image.

    Args:
        q: (B, D) queries of any length.
        k: (B, D) their keys of any length; those of the N images of all workers are gathered, and take no gradient.
        temperature: Divides the cosine similarities.
    """
    q, k = F.normalize(at_least_float32(q), dim=1), F.normalize(at_least_float32(k), dim=1)
    return q @ all_gather(k).T / temperature


def _cross_entropy_with_own(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, _own_columns(logits))


def _own_columns(logits: Tensor) -> Tensor:
    return torch.arange(len(logits), device=logits.device) + rank() * len(logits)


def _fix_patch_embedding(backbone: nn.Module, patch_embedding: str) -> None:
    """Freeze a ViT's projection of patches (timm's `patch_embed.proj`, torchvision's `conv_proj`), as `patch_embedding` says.

    Raises:
        UsageError: the option has no effect, since the backbone has no such projection.
    """
    modules = dict(backbone.named_modules())
    projection = modules.get("patch_embed.proj", modules.get("conv_proj"))
    if isinstance(projection, nn.Conv2d) and projection.stride == projection.kernel_size != (1, 1):
        projection.requires_grad_(patch_embedding == "trained")
    elif patch_embedding != "auto":
        raise UsageError(
            f"method.patch_embedding={patch_embedding!r} has no effect: the backbone projects no patches with one convolution; leave it "
            "out, or take a ViT such as backbone.name=timm/vit_small_patch16_224"
        )
