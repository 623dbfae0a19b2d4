"""Published weights: which ones exist, where they come from, and a cache of them that is checked at every use.

The published files are checked by their sha256 before anything in them is parsed, then converted to one safetensors file. That file says
what it is (code space, sources, license) and has a digest of all this and of its tensors, so that it can be copied to a shared path or to
other nodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ray_sassl.files import storage
from ray_sassl.files.cache import cache_dir, download, locked, mismatch
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.process.errors import UsageError

_FORMAT = "ray-sassl weights 1"
_DIGEST = "content_sha256"


class MissingWeightsError(UsageError):
    """The weights are not on this machine."""


class BadWeightsError(UsageError):
    """The file is damaged or is not the expected one."""


@dataclass(frozen=True)
class WeightsFile:
    """One published file.

    Attributes:
        name: Its file name.
        addresses: Where it can be downloaded, the publisher's address first.
        num_bytes, sha256: Size and digest of its content.
    """

    name: str
    addresses: tuple[str, ...]
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that somebody else has published.

    Attributes:
        name: What `ray-sassl weights fetch NAME` takes.
        title: What they are, in a few words.
        files: The published files.
        license, authors, paper: As published.
        code_space: The `bundle_id` of the stylizer that uses them.
        convert: Converts the contents of the files, by name, to tensors, by name.
    """

    name: str
    title: str
    files: tuple[WeightsFile, ...]
    license: str
    authors: str
    paper: str
    code_space: str
    convert: Callable[[dict[str, bytes]], dict[str, Tensor]]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def sources(self) -> dict[str, str]:
        """The sha256 of each file by its name."""
        return {file.name: file.sha256 for file in self.files}


def weights_path(weights: PublishedWeights) -> Path:
    """Path of the converted weights in the cache, whether they exist or not; another version of the files has another path."""
    version = hashlib.sha256("".join(sorted(weights.sources.values())).encode()).hexdigest()[:12]
    return cache_dir() / "weights" / f"{weights.name}-{version}.safetensors"


def fetch_weights(weights: PublishedWeights, advance: Callable[[str, int], object] = lambda name, done: None) -> Path:
    """Download, check and convert what is not in the cache yet; returns the converted file. A second process waits for the first.

    Args:
        advance: Called with a file's name and the number of its bytes downloaded so far.

    Raises:
        DownloadError: no address has the file as it was published.
    """
    path = weights_path(weights)
    with locked(path):
        if not path.exists():
            for file in weights.files:
                if not (original := _original(weights, file)).exists():
                    download(file.addresses, original, file.num_bytes, file.sha256, lambda done, name=file.name: advance(name, done))
            _convert_originals(weights)
    return path


def add_weights(known: Iterable[PublishedWeights], paths: Sequence[str | Path]) -> list[tuple[str, PublishedWeights]]:
    """Add published files from disk, for machines without a network; files may be added one by one and are converted once all are there.

    Returns:
        Each path with the weights that it belongs to.

    Raises:
        BadWeightsError: a file is missing, or its content is not that of a published file.
    """
    known = list(known)
    recognized = [(str(path), *_recognize(known, Path(path))) for path in paths]
    for _, weights, file, content in recognized:
        with locked(weights_path(weights)):
            storage.write_bytes(_original(weights, file), content)
            if all(_original(weights, other).exists() for other in weights.files):
                _convert_originals(weights)
    return [(path, weights) for path, weights, _, _ in recognized]


def missing_files(weights: PublishedWeights) -> list[str]:
    """The names of the published files that are still needed; none if the converted weights exist."""
    if weights_path(weights).exists():
        return []
    return [file.name for file in weights.files if not _original(weights, file).exists()]


def verify_weights(weights: PublishedWeights) -> None:
    """Check everything that the cache has of the weights.

    Raises:
        MissingWeightsError: the cache has nothing.
        BadWeightsError: a file is damaged; the message says how to repair it.
    """
    load_weights(weights)
    for file in weights.files:
        path = _original(weights, file)
        if path.exists() and (problem := mismatch(path.read_bytes(), file.num_bytes, file.sha256)):
            raise BadWeightsError(f"{path} is damaged: {problem}. Delete it; the converted weights do not need it.")


def load_weights(weights: PublishedWeights, location: str | None = None) -> dict[str, Tensor]:
    """The tensors by name; nothing is downloaded.

    Args:
        location: A path or URI of the converted file; the cache if not given.

    Raises:
        MissingWeightsError: the weights do not exist there; the message says how to get them.
        BadWeightsError: the file is damaged or belongs to another network.
    """
    return _parse(weights, *_read(weights, location))


def read_weights(weights: PublishedWeights, location: str | None = None) -> bytes:
    """The checked content of the converted file; arguments and errors are those of `load_weights`."""
    content, where = _read(weights, location)
    _parse(weights, content, where)
    return content


def install_weights(weights: PublishedWeights, content: bytes) -> None:
    """Put the content of a converted file into this machine's cache, unless it is already there.

    Raises:
        BadWeightsError: the content is damaged or belongs to another network.
    """
    path = weights_path(weights)
    with locked(path):
        if not path.exists():
            _parse(weights, content, "the received file")
            storage.write_bytes(path, content)


def _read(weights: PublishedWeights, location: str | None) -> tuple[bytes, str]:
    where = location or str(weights_path(weights))
    if storage.exists(where):
        return storage.read_bytes(where), where
    if location is not None:
        raise MissingWeightsError(
            f"there are no weights at {location}; copy the file that `ray-sassl weights path {weights.name}` names there"
        )
    raise MissingWeightsError(
        f"the weights of {weights.name} are not on this machine: `ray-sassl weights fetch {weights.name}` downloads them "
        f"({weights.num_bytes / 1e6:.1f} MB, {weights.license}); without a network, `ray-sassl weights add` takes "
        f"{' and '.join(file.name for file in weights.files)}"
    )


def _convert_originals(weights: PublishedWeights) -> None:
    contents: dict[str, bytes] = {}
    for file in weights.files:
        contents[file.name] = _original(weights, file).read_bytes()
        if problem := mismatch(contents[file.name], file.num_bytes, file.sha256):  # before it is parsed
            raise BadWeightsError(f"{_original(weights, file)} is damaged: {problem}. Delete it and get it again.")
    tensors = {name: tensor.contiguous() for name, tensor in weights.convert(contents).items()}
    metadata = {
        "format": _FORMAT,
        "name": weights.name,
        "code_space": weights.code_space,
        "license": weights.license,
        "authors": weights.authors,
        "paper": weights.paper,
        "sources": json.dumps(weights.sources, sort_keys=True),
    }
    storage.write_bytes(weights_path(weights), save(tensors, {**metadata, _DIGEST: _digest(tensors, metadata)}))


def _parse(weights: PublishedWeights, content: bytes, where: str) -> dict[str, Tensor]:
    again = f"delete it and run `ray-sassl weights fetch {weights.name}` or `ray-sassl weights add`"
    try:
        metadata = read_header(content, where).metadata
        tensors = load(content)
    except (SafetensorError, UsageError) as error:
        raise BadWeightsError(f"{where} is damaged, or is not a safetensors file ({error}); {again}") from error
    if metadata.get("format") != _FORMAT or metadata.get("code_space") != weights.code_space:
        raise BadWeightsError(
            f"{where} has weights of {metadata.get('code_space', 'another network')}, not of {weights.code_space}; {again}"
        )
    written = metadata.pop(_DIGEST, None)
    if _digest(tensors, metadata) != written:
        raise BadWeightsError(f"{where} is damaged: it differs from what was written; {again}")
    return tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _recognize(known: Sequence[PublishedWeights], path: Path) -> tuple[PublishedWeights, WeightsFile, bytes]:
    if not path.is_file():
        raise BadWeightsError(f"there is no file {path}")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    for weights in known:
        for file in weights.files:
            if file.sha256 == found:
                return weights, file, content
    for weights in known:
        for file in weights.files:
            if file.name == path.name:
                raise BadWeightsError(f"{path} is not the published {file.name}: {mismatch(content, file.num_bytes, file.sha256)}")
    names = ", ".join(file.name for weights in known for file in weights.files)
    raise BadWeightsError(f"{path} is not one of the published files ({names}): its sha256 is {found}")


def _original(weights: PublishedWeights, file: WeightsFile) -> Path:
    return weights_path(weights).with_suffix("") / file.name
