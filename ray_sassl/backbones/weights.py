"""Weights for an encoder to start from: which of a file's tensors are the encoder's.

Files as they are published hold more than an encoder, under names of their own: MoCo's have `module.encoder_q.` before each name, DINO's a
`teacher` with `module.backbone.`, timm's and torchvision's a classifier. The part and the prefix that fit the most tensors are taken.
"""

from __future__ import annotations

import argparse
import io
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.files.hub_client import fetching
from ray_sassl.process.errors import UsageError

Pixels = tuple[float, float, float]
State = Mapping[str, Tensor]

_PREFERRED = ("teacher", "encoder_q", "ema", "target", "online", "student")
"""Parts of a file that fit equally well are taken in this order; DINO's authors evaluate the teacher, MoCo's the query encoder."""
_DEPTH = 3
_SHOWN = 5


@dataclass(frozen=True)
class Source:
    """Weights, and what is known about them.

    Attributes:
        name: Where they come from, for people.
        state: Tensors by name, maybe nested in mappings.
        pixel_mean: Subtracted from RGB in [0, 1] by whoever trained them; None if unknown.
        pixel_std: Likewise.
        backbone: The encoder that they are for, where the source says so.
        size_px: Side of the images that they were trained on; None if unknown.
        data: The labeled images that the source was evaluated on, by split, where it says so.
    """

    name: str
    state: Mapping[str, Any]
    pixel_mean: Pixels | None = None
    pixel_std: Pixels | None = None
    backbone: BackboneConfig | None = None
    size_px: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Loaded:
    """What was loaded into an encoder.

    Attributes:
        part: The mapping and the prefix of the tensors that were taken, such as `state_dict/module.encoder_q.`.
        num_tensors: How many.
        num_parameters: Their numbers; all of the encoder's.
        left: Names of the source's other tensors: heads, classifiers, optimizers.
    """

    part: str
    num_tensors: int
    num_parameters: int
    left: tuple[str, ...]


def read_state(content: bytes, name: str) -> Mapping[str, Any]:
    """The tensors of a safetensors or PyTorch file. No code in it is run.

    Raises:
        UsageError: it is neither, or it holds objects other than tensors and plain values.
    """
    if name.endswith(".safetensors"):
        try:
            return safetensors.torch.load(content)
        except (SafetensorError, ValueError) as error:
            raise UsageError(f"{name} is damaged, or is not a safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the settings in files of DINO and others
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{name} is not a file of weights that can be read without running code in it; give a safetensors file or a PyTorch file of "
            f"tensors (torch.save(model.state_dict(), ...)): {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error
    if not isinstance(state, Mapping):
        raise UsageError(f"{name} holds a {type(state).__name__}, not tensors by name")
    return state


def published(library: str, name: str) -> Source:
    """The published weights of a model of timm or torchvision, from the library's cache or the network.

    Raises:
        UsageError: there is no such model, it has no weights, or they cannot be fetched.
    """
    try:
        return _from_timm(name) if library == "timm" else _from_torchvision(name)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise UsageError(f"{library}:{name} has no weights here: {reason}. Without a network, give a file of weights instead") from error


def _from_timm(name: str) -> Source:
    import timm  # slow to import

    with fetching(f"timm:{name}"):
        model = timm.create_model(name, pretrained=True)
    facts: Any = model.pretrained_cfg
    backbone = BackboneConfig(name=f"timm/{name.partition('.')[0]}")  # what follows the dot names one of the network's weights
    return Source(f"timm:{name}", model.state_dict(), tuple(facts["mean"]), tuple(facts["std"]), backbone, facts["input_size"][-1])


def _from_torchvision(name: str) -> Source:
    import torchvision  # slow to import

    model = torchvision.models.get_model(name, weights="DEFAULT")
    views: Any = torchvision.models.get_model_weights(name)["DEFAULT"].transforms()
    backbone = BackboneConfig(name=name)
    return Source(f"torchvision:{name}", model.state_dict(), tuple(views.mean), tuple(views.std), backbone, views.crop_size[0])


def encoder_with(config: BackboneConfig, state: State) -> tuple[nn.Module, int]:
    """The encoder with these tensors of its own, and its width; torch's global generator is not changed."""
    backbone, num_features = _built(config)
    backbone.load_state_dict(state)
    return backbone, num_features


def encoder_from(config: BackboneConfig, source: Source) -> tuple[nn.Module, int, Loaded]:
    """The encoder with the source's weights, its width, and what was loaded; torch's global generator is not changed.

    Raises:
        UsageError: as for `load_weights`.
    """
    backbone, num_features = _built(config)
    return backbone, num_features, load_weights(backbone, source)


def _built(config: BackboneConfig) -> tuple[nn.Module, int]:
    with torch.random.fork_rng(devices=[]):
        return build_backbone(config)


def load_weights(backbone: nn.Module, source: Source) -> Loaded:
    """Put the source's tensors into the encoder, every one of its parameters and statistics.

    Raises:
        UsageError: not all of them are there with the encoder's shapes; the message lists what is missing and what differs.
    """
    expected = backbone.state_dict()
    part, prefix, state = _best_part(source, expected)
    given = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    needed = [name for name in expected if not name.endswith("num_batches_tracked")]
    missing = [name for name in needed if name not in given]
    differing = [name for name in needed if name in given and given[name].shape != expected[name].shape]
    if missing or differing:
        raise UsageError(_misfit(source, expected, given, missing, differing))
    taken = {name: given.get(name, expected[name]) for name in expected}
    backbone.load_state_dict(taken)
    left = tuple(name for name in state if not (name.startswith(prefix) and name[len(prefix) :] in expected))
    numbers = sum(parameter.numel() for parameter in backbone.parameters())
    return Loaded(f"{part}{prefix}", sum(name in given for name in expected), numbers, left)


def _best_part(source: Source, expected: State) -> tuple[str, str, State]:
    """The mapping of tensors, and the prefix of their names, that fit the encoder best."""
    found: list[tuple[tuple[int, int], str, str, State]] = []
    for part, state in _parts(source.state):
        counts: Counter[str] = Counter()
        for name in state:
            pieces = name.split(".")
            for start in range(len(pieces)):
                if ".".join(pieces[start:]) in expected:
                    counts["".join(f"{piece}." for piece in pieces[:start])] += 1
        for prefix, count in counts.items():
            text = part + prefix
            rank = next((place for place, word in enumerate(_PREFERRED) if word in text), len(_PREFERRED))
            found.append(((count, -rank), part, prefix, state))
    if not found:
        raise UsageError(
            f"{source.name} holds no tensor with a name of the encoder's, such as {next(iter(expected))}; is it another network's?"
        )
    _, part, prefix, state = max(found, key=lambda one: one[0])
    return part, prefix, state


def _parts(state: Mapping[str, Any], name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, State]]:
    """Every mapping of tensors in nested mappings, with the path to it."""
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in state.items():
        if isinstance(value, Mapping) and depth:
            yield from _parts(value, f"{name}{key}/", depth - 1)


def _misfit(source: Source, expected: State, given: State, missing: list[str], differing: list[str]) -> str:
    total = sum(tensor.numel() for tensor in expected.values())
    fits = sum(tensor.numel() for name, tensor in expected.items() if name in given and name not in differing)
    lines = [f"{source.name} does not fit the encoder: {fits / total:.0%} of its numbers are there"]
    if missing:
        lines.append(f"  missing: {_listed(missing)}")
    if differing:
        shapes = [f"{name} {tuple(given[name].shape)}, not {tuple(expected[name].shape)}" for name in differing]
        lines.append(f"  of other shapes: {_listed(shapes)}")
    lines.append(
        "Choose the encoder that the weights are for: backbone.name=..., backbone.stem=imagenet or cifar, and the size of its images"
    )
    return "\n".join(lines)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
