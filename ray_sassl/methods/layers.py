"""The networks of a method that can be evaluated and exported: the student or the teacher, up to a layer of the projector."""

from __future__ import annotations

from torch import Tensor, nn

from ray_sassl.methods import Network
from ray_sassl.nn.method import Method
from ray_sassl.process.errors import UsageError


class EncoderLayer(nn.Module):
    """The encoder and some layers of its projector: (B, 3, H, W) -> (B, D)."""

    def __init__(self, backbone: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.backbone, self.layers = backbone, layers

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.backbone(images))


def network_of(method: Method, network: Network, layer: str) -> nn.Module:
    """The method's own modules, not a copy.

    Raises:
        UsageError: the method has no teacher, or its projector no such layer.
    """
    pair = method.student() if network == "student" else method.teacher()
    if pair is None:
        raise UsageError("evaluate.network=teacher: this method has no momentum encoder; those of moco, moco_v3, byol and dino have")
    backbone, projector = pair
    if layer == "backbone":
        return backbone
    number = layer.partition(".")[2]
    if not isinstance(projector, nn.Sequential):
        raise UsageError(f"evaluate.layer={layer}: this method has no projector")
    if number and int(number) >= len(projector):
        named = ", ".join(f"{place} {type(module).__name__}" for place, module in enumerate(projector))
        raise UsageError(f"evaluate.layer={layer}: the projector has the layers {named}")
    return EncoderLayer(backbone, projector[: int(number) + 1] if number else projector)
