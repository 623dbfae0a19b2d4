"""MoCo v2: He, Fan, Wu, Xie and Girshick 2020 (arXiv 1911.05722) with the head of Chen, Fan, Girshick and He 2020 (arXiv 2003.04297)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import Plain
from ray_sassl.methods.heads import Count, HeadsConfig
from ray_sassl.nn import split_batchnorm, sync_batchnorm
from ray_sassl.nn.ema import momentum_copy, update_momentum_copy
from ray_sassl.nn.gather import all_gather, exchange_rows, rank, world_size
from ray_sassl.nn.method import Method, StepOutput
from ray_sassl.nn.precision import at_least_float32, no_autocast
from ray_sassl.nn.queue import EmbeddingQueue
from ray_sassl.nn.upload import upload
from ray_sassl.process.errors import UsageError

_SAME = 1 - 1e-5
"""Keys with at least this cosine similarity are the same, up to the rounding of float32."""


class Config(HeadsConfig):
    """MoCo v2.

    Attributes:
        temperature: Temperature of InfoNCE; 0.2 in v2 (its table 1), 0.07 in v1, 0.1 in the authors' CIFAR-10 demo.
        queue_size: Negatives kept from earlier batches; 65,536 for ImageNet (v1, figure 3), 4,096 in the CIFAR-10 demo.
        momentum: Momentum of the key encoder (v1, section 4.1); 0.99 in the CIFAR-10 demo.
        projector_hidden_size: Width of the projector's hidden layer (v2, section 2: 2048).
        embedding_size: Width of the embeddings (v1, section 3.3).
        projector_layers: Linear layers of the projector (v2, section 2: 2); 1 is the head of v1.
        predictor_hidden_size: Width of the hidden layer of the predictor that an architecture of `fa` adds; like the projector, it has 2048
            and no batch normalization (our choice).
        predictor_layers: Linear layers of that predictor (our choice).
        symmetric: Use each view as query and as key, as in the CIFAR-10 demo; the loss is the sum of both directions.
        bn: How to prevent batch normalization from revealing a query's own key (v1, section 3.3). "shuffle" distributes the keys over the
            workers in a different order than the queries, and needs several workers; "split" does the same within each worker with
            `num_splits` groups; "sync" normalizes over all workers; "plain" does nothing and is the cheapest.
        num_splits: Groups of split batch normalization; 8 stands for the paper's 8 GPUs.
        fa: Feature augmentation. Keys take no gradient, so `fa.architecture=basic` augments the key, not the query.
    """

    paper_views: ClassVar[str] = "moco_v2"
    temperature: float = Field(default=0.2, gt=0)
    queue_size: int = Field(default=65536, ge=1)
    momentum: float = Field(default=0.999, ge=0, le=1)
    projector_hidden_size: Count = 2048
    embedding_size: Count = 128
    projector_layers: Count = 2
    predictor_hidden_size: Count = 2048
    symmetric: bool = False
    bn: Literal["plain", "sync", "shuffle", "split"] = "plain"
    num_splits: int = Field(default=8, ge=2)

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=False, needs_predictor=False, trains_targets=False, is_symmetric=self.symmetric)

    @model_validator(mode="after")
    def _every_option_has_an_effect(self) -> Self:
        if self.bn != "split" and self.num_splits != type(self).model_fields["num_splits"].default:
            raise ValueError(f"num_splits={self.num_splits} has no effect with bn={self.bn!r}; set bn='split'")
        return self

    def check_workers(self, num_workers: int) -> None:
        if self.bn == "shuffle" and num_workers < 2:
            raise UsageError(
                "method.bn=shuffle moves keys between workers, and there would be only one; set method.bn=split to do so within it, or "
                "method.bn=plain, or take two workers at least (scaling.num_workers, scaling.min_workers)"
            )

    def too_few_rows(self, rows: int, num_workers: int) -> str | None:
        if self.bn == "split" and rows < self.num_splits:
            return f"method.bn=split normalizes method.num_splits={self.num_splits} groups of each worker's images by themselves"
        if rows * num_workers < 2:
            return "batch normalization over a single image tells the query which key is its own"
        return None

    def build(self, backbone: nn.Module, num_features: int) -> MoCo:
        return MoCo(self, backbone, num_features)


class MoCo(Method):
    """A query must find its image's key among the keys of earlier batches; keys come from a slowly moving copy of the encoder.

    The key encoder keeps its own batch statistics, from its own forward passes. The queue is read before it is written and written
    once a step, so that no sample meets its own key of this step among the negatives, in the symmetric form neither.
    """

    def __init__(self, config: Config, backbone: nn.Module, num_features: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = config.build_projector(num_features, hidden_bn=False)
        self.branches = config.build_branches()
        self.predictor = config.build_predictor(hidden_bn=False) if config.has_predictor else None
        if config.bn == "sync":
            sync_batchnorm.convert(self)
        elif config.bn == "split":
            split_batchnorm.convert(self, config.num_splits)
        self.key_backbone = momentum_copy(self.backbone)
        self.key_projector = momentum_copy(self.projector)
        self.queue = EmbeddingQueue(config.queue_size, config.embedding_size)

    def forward(self, views: Sequence[Tensor], generator: torch.Generator, sample_id: Tensor | None = None) -> StepOutput:
        """As in the contract; if `sample_id` (B,) is given, older keys of a sample are not its negatives either.

        Differs from the paper: there, a sample's own key of the epoch before is a negative if the queue still holds it.
        """
        left, right = views
        negatives, negative_ids = self.queue.read()  # (K, D), (K,), as they were before this step
        is_own = None if sample_id is None else sample_id[:, None] == negative_ids  # (B, K)
        z, keys = {}, {}
        for query_view, key_view in self.branches.directions:
            z[query_view] = self.projector(self.backbone((left, right)[query_view]))  # (B, D)
            keys[key_view] = self._keys((left, right)[key_view], generator)  # (N, D), of all workers
        k = {view: _own_rows(everyone, len(left)) for view, everyone in keys.items()}  # (B, D)
        pairs = self.branches.pairs(z, k, self.predictor, generator, sample_id)
        with no_autocast(left):
            logits = [self._logits(query, key, negatives, is_own) for query, key in pairs]
        loss = torch.stack([_cross_entropy_with_first(rows) for rows in logits]).sum()
        all_ids = None if sample_id is None else all_gather(sample_id).repeat(len(keys))
        self.queue.write(torch.cat(list(keys.values())), all_ids)
        chance_loss = len(pairs) * math.log(1 + self.config.queue_size)
        return StepOutput(loss, z[0].detach(), chance_loss, self._metrics(logits[0].detach()))

    def teacher(self) -> tuple[nn.Module, nn.Module]:
        return self.key_backbone, self.key_projector

    def after_step(self, progress: float) -> None:
        update_momentum_copy(self.key_backbone, self.backbone, self.config.momentum)
        update_momentum_copy(self.key_projector, self.projector, self.config.momentum)

    @torch.no_grad()
    def _keys(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """Unit-length keys (N, D) of the global batch, in the order of its images, equal on all workers."""
        if self.config.bn == "shuffle":
            return self._shuffled_keys(view, generator)
        if self.config.bn != "split":
            return all_gather(self._encode_keys(view))
        order = upload(torch.randperm(len(view), generator=generator), view.device)
        return all_gather(self._encode_keys(view[order])[order.argsort()])

    def _shuffled_keys(self, view: Tensor, generator: torch.Generator) -> Tensor:
        self.config.check_workers(world_size())
        order = torch.randperm(world_size() * len(view), generator=generator)
        sent = view if self.normalization is None else self.normalization.pixels(view)
        shuffled = exchange_rows(sent.permute(0, 2, 3, 1), order).permute(0, 3, 1, 2)  # so channels_last stays
        images = shuffled if self.normalization is None else self.normalization(shuffled, view.dtype)
        return all_gather(self._encode_keys(images))[upload(order.argsort(), view.device)]

    def _encode_keys(self, view: Tensor) -> Tensor:
        embeddings = self.key_projector(self.key_backbone(view))
        with no_autocast(view):
            return F.normalize(at_least_float32(embeddings), dim=1)

    def _logits(self, query: Tensor, key: Tensor, negatives: Tensor, is_own: Tensor | None) -> Tensor:
        """The logits of one direction. A negative that equals the augmented key (which may be a stored neighbor) is left out."""
        q = F.normalize(at_least_float32(query), dim=1)
        if not self.branches.is_plain:
            key = F.normalize(key, dim=1)
            is_key = key @ negatives.to(key.dtype).T > _SAME
            is_own = is_key if is_own is None else is_own | is_key
        return info_nce_logits(q, key, negatives, self.config.temperature, is_own)

    def _metrics(self, logits: Tensor) -> dict[str, Tensor]:
        similarity = logits[:, 0].mean() * self.config.temperature
        top1 = (logits.argmax(1) == 0).float().mean()
        return {"positive_similarity": similarity, "instance_top1": top1, "momentum": similarity.new_full((), self.config.momentum)}


def info_nce(q: Tensor, k: Tensor, negatives: Tensor, temperature: float, is_own: Tensor | None = None) -> Tensor:
    """InfoNCE (v1, equation 1), mean over the queries; the arguments are those of `info_nce_logits`."""
    return _cross_entropy_with_first(info_nce_logits(q, k, negatives, temperature, is_own))


def info_nce_logits(q: Tensor, k: Tensor, negatives: Tensor, temperature: float, is_own: Tensor | None = None) -> Tensor:
    """Logits (B, 1 + K), the positive in column 0.

    Args:
        q: (B, D) queries of length 1.
        k: (B, D) their keys of length 1.
        negatives: (K, D) keys of length 1.
        temperature: Divides the cosine similarities.
        is_own: (B, K) bool, true for negatives of the query's own sample, which are left out.
    """
    positive = (q * k).sum(1, keepdim=True)  # (B, 1)
    negative = q @ negatives.to(q.dtype).T  # (B, K)
    if is_own is not None:
        negative = negative.masked_fill(is_own, -math.inf)
    return torch.cat([positive, negative], dim=1) / temperature


def _cross_entropy_with_first(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def _own_rows(everyone: Tensor, batch_size: int) -> Tensor:
    return everyone[rank() * batch_size : (rank() + 1) * batch_size]
