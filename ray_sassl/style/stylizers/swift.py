"""Our own small stylizer, distilled from the published one and shipped with this package; `swift.md` in this folder is its model card.

The transformer has the shape of Ghiasi et al. 2017 (arXiv 1705.06830) and weights of our own; the predictor is a small network for images
of 64 px. It needs no download. `ray-sassl stylize distill` makes such files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ray_sassl.files import storage
from ray_sassl.files.paths import LocalPath
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.process.errors import UsageError
from ray_sassl.style.networks.style_network import SmallPredictor, StyleTransformer
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.style.stylizers.network_pair import NetworkPair
from ray_sassl.style.weights import BadWeightsError, MissingWeightsError

CODE_SPACE = "swift-v1"
STYLE_PX = 64
"""Side at which codes are computed, as in the training."""
SHIPPED = Path(__file__).with_suffix(".safetensors")
_FORMAT = "ray-sassl student 1"


class Config(StylizerConfig):
    """The small stylizer; it needs no download."""

    min_px: ClassVar[int] = NetworkPair.min_px
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the networks; codes and images are returned as float32."""
    weights: Annotated[str | None, LocalPath()] = None
    """Path or URI of a file written by `ray-sassl stylize distill`; by default the weights in this package."""

    def weights_location(self) -> str | None:
        return self.weights

    def build(self, device: torch.device) -> NetworkPair:
        state, facts = read_student(self.weights or SHIPPED)
        predictor, transformer = build_networks(state)
        code_size = predictor.code.out_features
        return NetworkPair(facts["code_space"], code_size, predictor, transformer, STYLE_PX, device, getattr(torch, self.precision))


def build_networks(state: Mapping[str, Tensor]) -> tuple[SmallPredictor, StyleTransformer]:
    """Predictor and transformer with the weights that `read_student` returns."""
    code_size = len(state["predictor.code.bias"])
    predictor, transformer = SmallPredictor(code_size), StyleTransformer(code_size)
    for prefix, network in (("predictor.", predictor), ("transformer.", transformer)):
        network.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    return predictor, transformer


def pack_student(state: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """The content of a student's file, in float16.

    Args:
        state: The weights of both networks, under `predictor.` and `transformer.`.
        facts: Facts about the file; `code_space` names its codes.
    """
    return save({name: value.detach().cpu().half().contiguous() for name, value in state.items()}, {"format": _FORMAT, **facts})


def read_student(path: str | Path = SHIPPED) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights of both networks in float32, and the facts that `pack_student` was given.

    Raises:
        MissingWeightsError: the file does not exist.
        BadWeightsError: the file is damaged or was not written by `pack_student`.
    """
    if not storage.exists(path):
        raise MissingWeightsError(
            f"there are no weights at {path}; make them with `ray-sassl stylize distill`, or leave stylize.weights out"
        )
    content = storage.read_bytes(path)
    try:
        facts = read_header(content, str(path)).metadata
        state = {name: value.float() for name, value in load(content).items()}
    except (SafetensorError, UsageError) as error:
        raise BadWeightsError(f"{path} is damaged, or is not a safetensors file ({error})") from error
    if facts.get("format") != _FORMAT or "code_space" not in facts:
        raise BadWeightsError(f"{path} was not written by `ray-sassl stylize distill`; stylize=swift takes no other weights")
    return state, facts
