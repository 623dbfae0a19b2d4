"""SimCLR: Chen, Kornblith, Norouzi and Hinton 2020, "A Simple Framework for Contrastive Learning of Visual Representations" (arXiv
2002.05709)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sassl.methods.branches import ByView, Plain, Sides
from ray_sassl.methods.in_batch import Contrast, InBatchConfig, InBatchContrast, unit
from ray_sassl.nn.gather import all_gather_with_gradient, rank, world_size


class Config(InBatchConfig):
    """SimCLR.

    Attributes:
        temperature: Temperature of NT-Xent; 0.1 for ImageNet (section 6 and the official code), 0.5 for CIFAR-10 (appendix B.9).
        projector_hidden_size: Width of the projector's hidden layers; 2048, as wide as the features of ResNet-50 (section 4.2).
        embedding_size: Width of the embeddings (section 4.2).
        projector_layers: Linear layers of the projector (section 4.2: one hidden layer); SimCLR v2 has 3.
        projector_last_bn: Batch normalization of the embeddings, as in the official code.
        bn: "sync" normalizes over the batches of all workers (section 2.2, "Global BN"), "plain" over each worker's own.
    """

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=False, needs_predictor=False, trains_targets=True)

    def build(self, backbone: nn.Module, num_features: int) -> SimCLR:
        return SimCLR(self, backbone, num_features)


class SimCLR(InBatchContrast):
    """Each view must identify the other view of its image among all other views of the global batch.

    With feature augmentation the predictions are the queries, and both views' targets are the candidates.
    """

    def contrast(self, sides: Sides) -> Contrast:
        logits, positives = _logits(sides.predictions, sides.targets, self.config.temperature)
        return Contrast(logits, positives, logits.shape[1] - 1)


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """NT-Xent, the normalized temperature-scaled cross-entropy (equation 1), mean over this worker's 2B views.

    Args:
        z1: (B, D) embeddings of the first views, of any length; those of all workers are gathered with gradients.
        z2: (B, D) embeddings of the second views, in the same order.
        temperature: Divides the cosine similarities.
    """
    return F.cross_entropy(*nt_xent_logits(z1, z2, temperature))


def nt_xent_logits(z1: Tensor, z2: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """NT-Xent as a cross-entropy: logits (2B, 2N) of this worker's views against those of the N images of all workers, with -inf for each
    view's own entry, and (2B,) the columns of the positives."""
    z = {0: z1, 1: z2}
    return _logits(z, z, temperature)


def _logits(predictions: ByView, targets: ByView, temperature: float) -> tuple[Tensor, Tensor]:
    """Like `nt_xent_logits`, for predictions (of both views or the first) against the targets of both."""
    queries = {view: unit(x) for view, x in predictions.items()}
    # Embeddings on both sides are normalized once, and their gradients are summed before the normalization.
    keys = [queries[view] if view in queries and targets[view] is predictions[view] else unit(targets[view]) for view in (0, 1)]
    candidates = torch.cat([all_gather_with_gradient(x) for x in keys])  # (2N, D)
    batch_size, num_images = len(keys[0]), len(keys[0]) * world_size()
    first = torch.arange(batch_size, device=candidates.device) + rank() * batch_size
    own = torch.cat([first + view * num_images for view in queries])
    positives = torch.cat([first + (1 - view) * num_images for view in queries])
    logits = torch.cat(list(queries.values())) @ candidates.T / temperature
    return logits.scatter(1, own[:, None], -math.inf), positives
