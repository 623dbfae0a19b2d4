"""NNCLR: Dwibedi, Aytar, Tompson, Sermanet and Zisserman 2021, "With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning
of Visual Representations" (arXiv 2104.14548).

It is a preset: contrast within the batch, with nearest neighbors as the feature augmentation, in parallel to the predictor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_sassl.feature_aug.nearest import Config as Nearest
from ray_sassl.methods.branches import FaConfig, Plain, Sides
from ray_sassl.methods.heads import Count
from ray_sassl.methods.in_batch import Contrast, InBatchConfig, InBatchContrast, unit
from ray_sassl.nn.gather import all_gather_with_gradient, rank


class Config(InBatchConfig):
    """NNCLR.

    Attributes:
        temperature: Temperature of InfoNCE (section 3.3).
        projector_hidden_size: Width of the projector's hidden layers (section 3.3).
        embedding_size: Width of the embeddings and of the predictions (section 3.3).
        projector_layers: Linear layers of the projector, each with batch normalization (section 3.3).
        projector_last_bn: Batch normalization of the embeddings (section 3.3).
        predictor_hidden_size: Width of the predictor's hidden layer (section 3.3).
        predictor_layers: Linear layers of the predictor; the last has neither batch normalization nor ReLU (section 3.3).
        bn: "sync" normalizes over the batches of all workers, "plain" over each worker's own; the paper does not say.
        fa: Feature augmentation; by default the nearest neighbor in a support set of 98,304 embeddings (section 3.3) of the first view
            (appendix A). `fa.architecture=basic` leaves the predictor out.
    """

    embedding_size: Count = 256
    projector_layers: Count = 3
    fa: FaConfig = FaConfig(augmentation=Nearest(support_size=98_304))

    @property
    def plain(self) -> Plain:
        return Plain(has_predictor=True, needs_predictor=False, trains_targets=True)

    def build(self, backbone: nn.Module, num_features: int) -> NNCLR:
        return NNCLR(self, backbone, num_features)


class NNCLR(InBatchContrast):
    """The nearest neighbor of each view must identify the prediction from the other view of its image among those of all images.

    The paper mentions another term for the columns of the same matrix, and finds it without effect; it is left out.
    """

    def contrast(self, sides: Sides) -> Contrast:
        logits, positives = [], []
        for a, b in self.branches.directions:
            prediction, target = sides.predictions[a], sides.targets[b]
            anchors, candidates = (target, prediction) if self.branches.has_predictor else (prediction, target)
            rows, columns = nnclr_logits(anchors, candidates, self.config.temperature)
            logits.append(rows)
            positives.append(columns)
        return Contrast(torch.cat(logits), torch.cat(positives), logits[0].shape[1])


def nnclr_logits(anchors: Tensor, candidates: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The cross-entropy of one direction (section 3.2): logits (B, N), and (B,) the columns of the positives.

    Args:
        anchors: (B, D) nearest neighbors of one view, of any length.
        candidates: (B, D) predictions from the other view; those of the N images of all workers are gathered with gradients.
        temperature: Divides the cosine similarities.
    """
    logits = unit(anchors) @ all_gather_with_gradient(unit(candidates)).T / temperature
    return logits, torch.arange(len(anchors), device=logits.device) + rank() * len(anchors)
