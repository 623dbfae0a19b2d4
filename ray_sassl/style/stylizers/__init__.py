"""Stylizers: one file each. `stylize/color_statistics.py` is `stylize=color_statistics`.

A stylizer is a bundle of an embedding and a renderer that share a code space. Codes of another bundle are meaningless to it, so code that
stores style codes stores `bundle_id` with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from ray_sassl.plugins import PluginConfig, load_plugin, plugin_names

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ray_sassl.style.weights import PublishedWeights


class Stylizer(ABC):
    """Style transfer in two steps, so that codes can be mixed between them (SASSL, Algorithm 1).

    Attributes:
        bundle_id: Name of the code space; equal ids mean interchangeable codes.
        code_size: Width C of a style code.
        min_px: The smallest side of an image that is rendered.
        style_px: The image side that `embed` works at; larger images give it no more information.
    """

    bundle_id: str
    code_size: int
    min_px: int = 1
    style_px: int = 256

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """Style codes (B, C) float32 of images (B, 3, H, W), float in [0, 1]."""

    @abstractmethod
    def render(self, images: Tensor, codes: Tensor) -> Tensor:
        """The images (B, 3, H, W) stylized in the styles `codes` (B, C); same shape, float in [0, 1]."""


class StylizerConfig(PluginConfig, ABC):
    """The config of a stylizer."""

    is_identity: ClassVar[bool] = False
    """True for the one stylizer that changes nothing; the pipeline then skips style augmentation."""
    min_px: ClassVar[int] = 1
    """The stylizer's `min_px`, so that views which it cannot stylize are refused before it is built."""

    def published_weights(self) -> PublishedWeights | None:
        """The published weights that a machine needs before the stylizer can be built there; None if there are none."""
        return None

    def weights_location(self) -> str | None:
        """The configured location of the weights; None means the cache, or the weights in this package."""
        return None

    @abstractmethod
    def build(self, device: torch.device) -> Stylizer:
        """The stylizer with its weights on the device, ready for inference.

        Raises:
            MissingWeightsError: its weights are not on this machine.
        """


def all_published_weights() -> dict[str, PublishedWeights]:
    """The published weights that stylizers need, by name: those of the modules that define `WEIGHTS`."""
    modules = [load_plugin(__name__, name) for name in plugin_names(__name__)]
    return {module.WEIGHTS.name: module.WEIGHTS for module in modules if hasattr(module, "WEIGHTS")}
