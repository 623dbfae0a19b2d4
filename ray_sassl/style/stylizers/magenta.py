"""The published stylizer: arbitrary style transfer (Ghiasi, Lee, Kudlur, Dumoulin and Shlens 2017, arXiv 1705.06830), by Magenta.

This is the mobile form: a MobileNetV2 style predictor and a narrow transformer, Apache-2.0. `ray-sassl weights fetch magenta` downloads the
weights.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ray_sassl.files.paths import LocalPath
from ray_sassl.style.networks.style_network import MobileNetPredictor, StyleTransformer
from ray_sassl.style.networks.tflite import BadTfliteError, read_constants
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.style.stylizers.network_pair import NetworkPair
from ray_sassl.style.weights import PublishedWeights, WeightsFile, load_weights

CODE_SPACE = "magenta-v1-256"
CODE_SIZE = 100
PREDICTOR, TRANSFORMER = "style_predict_quantized_256.tflite", "style_transfer_f16_384.tflite"


class Config(StylizerConfig):
    """Magenta's arbitrary style transfer; a code is 100 numbers."""

    min_px: ClassVar[int] = NetworkPair.min_px
    style_px: Annotated[int, Field(ge=32, le=1024)] = 256
    """Side to which images are resized to compute their codes: 256 as trained. Smaller is faster but gives other codes: those at 96 px have
    a cosine similarity of 0.94 to 0.975 to those at 256 px."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the networks; codes and images are returned as float32."""
    weights: Annotated[str | None, LocalPath()] = None
    """Path or URI of the converted weights, for clusters; by default the cache, which `ray-sassl weights fetch magenta` fills."""

    def published_weights(self) -> PublishedWeights:
        return WEIGHTS

    def weights_location(self) -> str | None:
        return self.weights

    def build(self, device: torch.device) -> NetworkPair:
        predictor, transformer = build_networks(load_weights(WEIGHTS, self.weights))
        return NetworkPair(CODE_SPACE, CODE_SIZE, predictor, transformer, self.style_px, device, getattr(torch, self.precision))


def build_networks(state: dict[str, Tensor]) -> tuple[MobileNetPredictor, StyleTransformer]:
    """Predictor and transformer with the converted weights."""
    predictor, transformer = MobileNetPredictor(CODE_SIZE), StyleTransformer(CODE_SIZE)
    for prefix, network in (("predictor.", predictor), ("transformer.", transformer)):
        network.load_state_dict({name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)})
    return predictor, transformer


def convert(files: dict[str, bytes]) -> dict[str, Tensor]:
    """The state of both networks, under `predictor.` and `transformer.`, from the contents of the two published files.

    Raises:
        BadTfliteError: a file cannot be read or does not have the network that its name says.
    """
    try:
        predictor = _predictor_state(read_constants(files[PREDICTOR]))
        transformer = _transformer_state(read_constants(files[TRANSFORMER]))
    except KeyError as error:
        raise BadTfliteError(f"the file belongs to another network: it has no tensor {error}") from error
    state = {f"predictor.{name}": value for name, value in predictor.items()}
    return state | {f"transformer.{name}": value for name, value in transformer.items()}


def _predictor_state(constants: dict[str, np.ndarray]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}

    def take(ours: str, theirs: str, bias: str, depthwise: bool = False) -> None:
        # OHWI, and (1, H, W, C) for depthwise convolutions, become OIHW.
        state[f"{ours}.weight"] = torch.from_numpy(
            constants[theirs].transpose(3, 0, 1, 2) if depthwise else constants[theirs].transpose(0, 3, 1, 2)
        )
        state[f"{ours}.bias"] = torch.from_numpy(constants[bias])

    take("stem", "MobilenetV2/Conv/weights", "MobilenetV2/Conv/Conv2D_bias")
    number = sum(count for _, _, count, _ in MobileNetPredictor.SETTINGS)
    for block in range(number):
        theirs = "MobilenetV2/expanded_conv" + (f"_{block}" if block else "")
        if block:
            take(f"blocks.{block}.expand", f"{theirs}/expand/weights", f"{theirs}/expand/Conv2D_bias")
        take(f"blocks.{block}.depthwise", f"{theirs}/depthwise/depthwise_weights", f"{theirs}/depthwise/depthwise_bias", depthwise=True)
        take(f"blocks.{block}.project", f"{theirs}/project/weights", f"{theirs}/project/Conv2D_bias")
    take("last", "MobilenetV2/Conv_1/weights", "MobilenetV2/Conv_1/Conv2D_bias")
    take("code", "mobilenet_conv/Conv/weights", "mobilenet_conv/Conv/Conv2D_bias")
    state["code.weight"] = state["code.weight"].flatten(1)
    return {name: value.contiguous() for name, value in state.items()}


def _transformer_state(constants: dict[str, np.ndarray]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}

    def kernel(theirs: str) -> Tensor:
        return torch.from_numpy(constants[f"transformer/{theirs}/weights"]).permute(0, 3, 1, 2).contiguous()

    for number in range(3):
        state[f"contract.{number}.weight"] = kernel(f"contract/conv{number + 1}")
        state[f"contract.{number}.bias"] = torch.from_numpy(constants[f"transformer/contract/conv{number + 1}/Conv2D_bias"])
    residual = [f"residual/residual{block}/conv{number}" for block in range(1, 6) for number in (1, 2)]
    expand = [f"expand/conv{number}/conv" for number in (1, 2, 3)]
    for part, names in (("residual", residual), ("expand", expand)):
        for number, theirs in enumerate(names):
            state[f"{part}.{number}.weight"] = kernel(theirs)
    for ours, theirs in (("beta", "Conv"), ("gamma", "Conv_1")):
        maps = [f"style_params/transformer/{name}/StyleNorm/{theirs}" for name in (*residual, *expand)]
        state[f"{ours}.weight"] = torch.cat([torch.from_numpy(constants[f"{name}/weights"]).flatten(1) for name in maps])
        state[f"{ours}.bias"] = torch.cat([torch.from_numpy(constants[f"{name}/Conv2D_bias"]) for name in maps])
    return state


_STORAGE = "https://storage.googleapis.com/download.tensorflow.org/models/tflite/arbitrary_style_transfer"
_LITE_MODELS = "https://storage.googleapis.com/tfhub-lite-models/google/lite-model/magenta/arbitrary-image-stylization-v1-256"
_COPIES = (
    "https://raw.githubusercontent.com/mattn/go-tflite/fe526f34/_example/style_transform",
    "https://raw.githubusercontent.com/terryky/tflite_gles_app/bfc2015a/gl2style_transfer/style_transfer_model",
)

WEIGHTS = PublishedWeights(
    name="magenta",
    title="Arbitrary image stylization, mobile form",
    files=(
        WeightsFile(
            PREDICTOR,
            (f"{_STORAGE}/{PREDICTOR}", f"{_LITE_MODELS}/int8/prediction/1.tflite", *(f"{copy}/{PREDICTOR}" for copy in _COPIES)),
            2_827_952,
            "203dbd6a09da1091ab7e48e8b101aef8c2d81438ad047a5cb150747a977134c1",
        ),
        WeightsFile(
            TRANSFORMER,
            (f"{_LITE_MODELS}/fp16/transfer/1.tflite", *(f"{copy}/{TRANSFORMER}" for copy in _COPIES)),
            421_104,
            "c60cff7395544eda1f0915d6dddaedd8ed868cefe8ec6c5ed220ba801f120303",
        ),
    ),
    license="Apache-2.0",
    authors="the Magenta team",
    paper="Ghiasi et al. 2017, arXiv 1705.06830",
    code_space=CODE_SPACE,
    convert=convert,
)
