"""An encoder with everything needed to use it, from a run, an exported file or the weights of others; and the format of that file.

The file is a safetensors file whose header contains the `EncoderFacts`, so that nothing else is needed to load it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from ray_sassl.backbones import PUBLISHED, BackboneConfig
from ray_sassl.backbones.weights import Source, encoder_from, encoder_with
from ray_sassl.config.files import from_yaml
from ray_sassl.config.overrides import apply_overrides, explain, parse_override
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.data.decode import DecodeError, decode, to_rgb
from ray_sassl.files import storage
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.nn.digest import weights_sha256
from ray_sassl.nn.normalize import normalize
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.files import CONFIG
from ray_sassl.runs.process import load_network
from ray_sassl.runs.start import find_source
from ray_sassl.train.checkpoint import Checkpoint
from ray_sassl.train.checkpoint_folder import MANIFEST
from ray_sassl.train.config import TrainConfig
from ray_sassl.views.center_crop import CenterCrop, EvaluationView

MODEL = "model.safetensors"
_FACTS = "ray_sassl"
_USUAL_PX = 224
_MAX_PIXELS = DataConfig.model_fields["max_pixels"].default


class BadEncoderError(UsageError):
    """The path contains no encoder that can be loaded."""


@dataclass(frozen=True)
class Preprocess:
    """Converts an image to the encoder's input, as in evaluations: (3, size_px, size_px) float32.

    It can be pickled, so it can be the `transform` of a torchvision data set.

    Attributes:
        size_px: Side of the square that an image becomes.
        mean, std: Mean and standard deviation of each channel, of intensities in [0, 1].
        crop, interpolation: How it becomes a square, as in `evaluate.crop`; `auto` cuts off the edges above 64 px.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: CenterCrop = "auto"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __call__(self, image: Image.Image | np.ndarray | bytes | str | os.PathLike[str]) -> Tensor:
        """The image, given as a PIL image, an RGB array (H, W, 3) uint8, a file's content, or a path or URI.

        Raises:
            UsageError: the file is not an image, or the array has another shape or dtype.
            FileNotFoundError: nothing is at the path.
        """
        return self.normalize(self.pixels(_rgb(image))[None])[0]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """(size_px, size_px, 3) uint8 of an RGB image."""
        return np.asarray(EvaluationView(self.size_px, self.crop, self.interpolation).of(image))

    def normalize(self, pixels: np.ndarray | Tensor) -> Tensor:
        """(B, size_px, size_px, 3) uint8 -> (B, 3, size_px, size_px) float32 in channels_last memory format."""
        if isinstance(pixels, np.ndarray):  # torch warns of arrays that cannot be written
            pixels = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
        return normalize(pixels, self.mean, self.std)


class EncoderFacts(FrozenConfig):
    """The network, input and origin of an encoder."""

    backbone: BackboneConfig
    num_features: int
    size_px: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    crop: CenterCrop = "auto"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How an image becomes a square; see `evaluate.crop`."""
    experiment: str
    """Name of the config that it was trained with; empty if it was not trained here."""
    source: str
    """The checkpoint."""
    step: int
    """Optimizer updates at the checkpoint."""
    weights_sha256: str
    """sha256 of the encoder's tensors and their names: equal for equal weights in any file."""
    version: str
    """The version of ray-sassl that wrote this."""
    network: Literal["student", "teacher"] = "student"
    layer: str = "backbone"
    """Which network and layer of the run; see `evaluate.network` and `evaluate.layer`."""
    head: str | None = None
    """Name of the linear layer on top, if the file contains one."""
    classes: tuple[str, ...] = ()
    """The classes of the linear layer's outputs, if they are known."""

    @property
    def view(self) -> EvaluationView:
        """How an image becomes a square."""
        return EvaluationView(self.size_px, self.crop, self.interpolation)


class Encoder(nn.Module):
    """Images to features, in evaluation mode: outputs of `preprocess` (B, 3, H, W) -> (B, num_features).

    Attributes:
        backbone: The network as its library builds it, without a classifier.
        preprocess: Converts an image to the network's input.
        head: (B, num_features) -> (B, classes), if the encoder has a linear classifier.
        facts: The network, input and origin.
    """

    def __init__(self, backbone: nn.Module, facts: EncoderFacts, head: nn.Linear | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.facts = facts
        self.preprocess = Preprocess(facts.size_px, facts.pixel_mean, facts.pixel_std, facts.crop, facts.interpolation)
        self.eval()

    @property
    def num_features(self) -> int:
        return self.facts.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)


Network = BackboneConfig | str | None
"""The network that a file of weights is for: its config (also as YAML), or its name as in `backbone.name`; None if the file says so."""


def load_encoder(
    path: str | os.PathLike[str],
    *,
    backbone: Network = None,
    size_px: int | None = None,
    network: Literal["student", "teacher"] | None = None,
    layer: str | None = None,
) -> Encoder:
    """An encoder on the CPU: of a run (its newest intact checkpoint), of a checkpoint, of a file that `ray-sassl export` wrote, or with the
    weights of others.

    Args:
        path: Local path or URI; for an export the file or its folder. `timm:NAME` and `torchvision:NAME` are published weights. Other files
            of weights are those of `backbone.weights`.
        backbone: The network, for a file that does not say so, as "resnet50".
        size_px: Side of its input images. By default `evaluate.size_px` of its config if that has evaluation data, else the size of its
            training views; for the weights of others the published size, else 224.
        network: Which network of a run or a checkpoint, `student` or `teacher`; by default `evaluate.network` of its config.
        layer: Its last layer, such as `projector.0`; by default `evaluate.layer` of its config, else the features.

    Raises:
        UsageError: the path does not exist, contains no encoder, or is damaged; or the weights do not fit the network.
    """
    text = os.fspath(path)
    encoder = encoder_without_run(text, backbone)
    if encoder is None:
        return encoder_of(find_checkpoint(text), size_px, network, layer)[1]
    if network is not None or layer is not None:
        raise UsageError(f"{text} has only the features that it was written with; network and layer are for runs and checkpoints")
    return encoder if size_px is None else Encoder(encoder.backbone, encoder.facts.model_copy(update={"size_px": size_px}), encoder.head)


def encoder_without_run(path: str, backbone: Network = None) -> Encoder | None:
    """The encoder of an exported file or of published weights; None if the path is that of a run or a checkpoint.

    Raises:
        UsageError: as for `load_encoder`.
    """
    if path.startswith(PUBLISHED):
        return _of_source(find_source(path), backbone)
    entry = storage.stat(path)
    if entry is None:
        raise BadEncoderError(f"{path} does not exist; give a run directory, a checkpoint, an export, a file of weights, or timm:NAME")
    if entry.is_file:
        return _read_file(path, backbone)
    if storage.exists(storage.join(path, MODEL)) and not storage.exists(storage.join(path, MANIFEST)):
        return _read_file(storage.join(path, MODEL), backbone)
    if any(storage.name_of(found.path).endswith(".onnx") for found in storage.list_dir(path)):
        raise BadEncoderError(_onnx_message(path))
    if backbone is not None:
        raise UsageError(f"{path} says which network it is for; leave out the other one")
    return None


def _of_source(source: Source, backbone: Network) -> Encoder:
    """The encoder with weights that were not trained here."""
    if backbone is not None and source.backbone is not None:
        raise UsageError(f"{source.name} says which network it is for; leave out the other one")
    config = _network(backbone) if backbone is not None else source.backbone
    assert config is not None
    network, num_features, _ = encoder_from(config, source)
    usual = TrainConfig()
    facts = EncoderFacts(
        backbone=config,
        num_features=num_features,
        size_px=source.size_px or _USUAL_PX,
        pixel_mean=source.pixel_mean or usual.pixel_mean,
        pixel_std=source.pixel_std or usual.pixel_std,
        experiment="",
        source=source.name,
        step=0,
        weights_sha256=weights_sha256(network),
        version=metadata.version("ray-sassl"),
    )
    return Encoder(network, facts)


def _network(backbone: BackboneConfig | str) -> BackboneConfig:
    if isinstance(backbone, BackboneConfig):
        return backbone
    given = parse_override(f"backbone={backbone}")[1] if backbone.startswith("{") else {"name": backbone}
    try:
        return BackboneConfig.model_validate(given)
    except ValidationError as error:
        raise UsageError(f"{backbone} is not a network: {explain(error)}") from error


def encoder_of(
    checkpoint: Checkpoint,
    size_px: int | None = None,
    network: Literal["student", "teacher"] | None = None,
    layer: str | None = None,
) -> tuple[ExperimentConfig, Encoder]:
    """The config of the run that wrote the checkpoint, and its encoder; see `load_encoder`."""
    config = from_yaml(checkpoint.config_yaml, source=f"{checkpoint.path}/{CONFIG}")
    network, layer = network or config.evaluate.network, layer or config.evaluate.layer
    backbone = load_network(checkpoint, apply_overrides(config, [f"evaluate.network={network}", f"evaluate.layer={layer}"]))
    has_data = config.evaluate.train is not None or config.evaluate.test is not None
    size_px = size_px or (config.evaluate.size_px if has_data else config.views.size_px)
    with torch.inference_mode():
        num_features = backbone.eval()(torch.zeros(1, 3, size_px, size_px)).shape[1]
    facts = EncoderFacts(
        backbone=config.backbone,
        num_features=num_features,
        size_px=size_px,
        pixel_mean=config.train.pixel_mean,
        pixel_std=config.train.pixel_std,
        crop=config.evaluate.crop,
        interpolation=config.evaluate.interpolation,
        experiment=config.name,
        source=checkpoint.path,
        step=checkpoint.step,
        network=network,
        layer=layer,
        weights_sha256=weights_sha256(backbone),
        version=metadata.version("ray-sassl"),
    )
    return config, Encoder(backbone, facts)


def encoder_bytes(encoder: Encoder, head: str = "linear_head") -> bytes:
    """The file that `load_encoder` reads, with the backbone's own names of tensors.

    Args:
        head: Name of the linear layer in the file, if the encoder has one.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.backbone.state_dict().items()}
    facts = encoder.facts
    if encoder.head is not None:
        state |= {f"{head}.{name}": tensor.detach().cpu().contiguous() for name, tensor in encoder.head.state_dict().items()}
        facts = facts.model_copy(update={"head": head})
    return safetensors.torch.save(state, metadata={"format": "pt", _FACTS: facts.model_dump_json()})


def encoder_from_bytes(content: bytes, source: str = "the file") -> Encoder:
    """The inverse of `encoder_bytes`.

    Raises:
        UsageError: the content is not such a file, or is damaged.
    """
    facts = _facts_of(content, source)
    try:
        state = safetensors.torch.load(content)
        head = None
        if facts.head is not None:
            weight, bias = (state.pop(f"{facts.head}.{name}") for name in ("weight", "bias"))
            head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            head.load_state_dict({"weight": weight, "bias": bias}, assign=True)
        backbone, _ = encoder_with(facts.backbone, state)
    except (safetensors.SafetensorError, RuntimeError, KeyError) as error:
        raise BadEncoderError(f"{source} is damaged, or its tensors do not match its header: {error}") from error
    if (found := weights_sha256(backbone)) != facts.weights_sha256:
        raise BadEncoderError(f"{source} is damaged: the sha256 of its weights is {found} and should be {facts.weights_sha256}")
    return Encoder(backbone, facts, head)


def _facts_of(content: bytes, source: str) -> EncoderFacts:
    text = read_header(content, source).metadata.get(_FACTS)
    if text is None:
        raise BadEncoderError(
            f"{source} was not written by `ray-sassl export`: its header does not say which network it is for. Name it (--backbone "
            "resnet50, in Python backbone='resnet50'); to load the encoder of a checkpoint, give the checkpoint's folder."
        )
    try:
        return EncoderFacts.model_validate_json(text)
    except ValidationError as error:
        raise BadEncoderError(f"{source} was written by another version of ray-sassl: {error}") from error


def _read_file(path: str, backbone: Network) -> Encoder:
    if path.endswith(".onnx"):
        raise BadEncoderError(_onnx_message(path))
    if backbone is not None:
        return _of_source(find_source(path), backbone)
    if not path.endswith(".safetensors"):
        raise BadEncoderError(f"{path} does not say which network it is for; name it: --backbone resnet50 (in Python backbone='resnet50')")
    return encoder_from_bytes(storage.read_bytes(path), path)


def _onnx_message(path: str) -> str:
    return (
        f"{path} is ONNX, which onnxruntime runs (its card says how); load_encoder takes runs, checkpoints and exported safetensors files"
    )


def _rgb(image: Image.Image | np.ndarray | bytes | str | os.PathLike[str]) -> Image.Image:
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(f"an array must be RGB (H, W, 3) uint8, this one is {image.shape} {image.dtype}")
        return Image.fromarray(image)
    source = os.fspath(image) if isinstance(image, str | os.PathLike) else "the image"
    try:
        if isinstance(image, Image.Image):
            return to_rgb(image)
        return decode(image if isinstance(image, bytes) else storage.read_bytes(source), _MAX_PIXELS)
    except DecodeError as error:
        raise UsageError(f"{source}: {error}") from error
