"""Features of labeled images from a frozen backbone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.nn.normalize import normalize
from ray_sassl.process.errors import UsageError


def extract_features(
    backbone: nn.Module,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
) -> LabeledFeatures:
    """The backbone's features of all batches, in their order, computed in evaluation mode; the backbone's modes are restored.

    Args:
        backbone: (B, 3, H, W) -> (B, F), on the device.
        batches: Images (B, H, W, 3) uint8 RGB and their labels (B,).
        mean: Mean of each channel, of intensities in [0, 1].
        std: Standard deviation of each channel, of intensities in [0, 1].
        device: Where the backbone is.

    Raises:
        UsageError: there are no images.
    """
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    with evaluation_mode(backbone):
        for images, batch_labels in batches:
            features.append(features_of(backbone, images, mean, std, device))
            labels.append(np.asarray(batch_labels, dtype=np.int64))
    if not features:
        raise UsageError("there are no images to compute features of")
    return LabeledFeatures(np.concatenate(features), np.concatenate(labels))


@torch.inference_mode()
def features_of(
    backbone: nn.Module, images: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device | str
) -> np.ndarray:
    """(B, F) float32 of images (B, H, W, 3) uint8, by a backbone that is in evaluation mode."""
    writable = np.require(images, requirements=["C", "W"])  # torch warns of arrays that cannot be written
    x = normalize(torch.from_numpy(writable).to(device, non_blocking=True), mean, std)
    return backbone(x).float().cpu().numpy()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode; afterward each module is in its previous mode again."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training
