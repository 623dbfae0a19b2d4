"""The published networks of stylizers from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError
from ray_sassl.style import weights as published
from ray_sassl.style.stylizers import all_published_weights
from ray_sassl.style.weights import PublishedWeights


@dataclass(frozen=True)
class WeightsStatus:
    """Published weights, and which of their files are on this machine.

    Attributes:
        weights: The published weights.
        path: Path of the converted weights, whether they exist or not.
        is_here: Whether the converted weights exist.
        missing: Published files that are not on this machine.
    """

    weights: PublishedWeights
    path: Path
    is_here: bool
    missing: tuple[str, ...]


def list_weights() -> dict[str, WeightsStatus]:
    """All published weights by name, and which of their files are on this machine."""
    return {name: _status(weights) for name, weights in all_published_weights().items()}


def fetch_weights(name: str, progress: Callable[[str, int, int], object] = lambda file, done, total: None) -> Path:
    """Download, check and convert weights; an interrupted download is continued. Returns the path of the converted file.

    Args:
        name: A name in `list_weights`.
        progress: Called with a file's name, its downloaded bytes and its size.

    Raises:
        UsageError: the name is unknown, or a downloaded file differs from the published one.
    """
    weights = _named(name)
    sizes = {file.name: file.num_bytes for file in weights.files}
    return published.fetch_weights(weights, lambda file, done: progress(file, done, sizes[file]))


def add_weights(files: Sequence[str]) -> list[tuple[str, WeightsStatus]]:
    """Add published files from disk, for machines without a network. Returns each file with the weights that it belongs to.

    Args:
        files: Paths of published files, which are recognized by their content.

    Raises:
        UsageError: a file is not one of the published ones.
    """
    added = published.add_weights(all_published_weights().values(), files)
    return [(str(path), _status(weights)) for path, weights in added]


def verify_weights(name: str | None = None) -> list[str]:
    """Check the weights on this machine, tensor by tensor. Returns the names of the checked ones.

    Args:
        name: The weights to check; by default all on this machine.

    Raises:
        UsageError: the name is unknown, or the weights are damaged.
    """
    chosen = [_named(name)] if name else [status.weights for status in list_weights().values() if status.is_here]
    for weights in chosen:
        published.verify_weights(weights)
    return [weights.name for weights in chosen]


def weights_path(name: str) -> Path:
    """The path of the converted weights, to copy them to a shared path.

    Raises:
        UsageError: the name is unknown, or the weights are missing or damaged.
    """
    weights = _named(name)
    published.load_weights(weights)
    return published.weights_path(weights)


def _status(weights: PublishedWeights) -> WeightsStatus:
    path = published.weights_path(weights)
    return WeightsStatus(weights, path, path.exists(), tuple(published.missing_files(weights)))


def _named(name: str) -> PublishedWeights:
    known = all_published_weights()
    if name not in known:
        raise UsageError(f"there are no weights {name!r}{did_you_mean(name, known)}. Known: {', '.join(known)}.")
    return known[name]
