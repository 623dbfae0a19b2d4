"""A bank of styles: the style codes of an external data set, computed once by `ray-sassl stylize bank` and stored as one safetensors file.

This module imports no torch: a bank is small, and light processes check it before anything starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from ray_sassl.files import storage
from ray_sassl.files.json_files import as_texts, parse_json
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.process.errors import UsageError

_FORMAT = "ray-sassl style bank 1"


class BadBankError(UsageError):
    """The file is not a style bank, or its codes are for another stylizer."""


@dataclass(frozen=True, eq=False)
class StyleBank:
    """Style codes of an external data set.

    Attributes:
        codes: (N, C) float32.
        names: Where each of the N styles comes from.
        bundle_id: The code space: that of the stylizer that computed the codes.
        mean: (C,) float64, mean of the codes.
        covariance: (C, C) float64, biased covariance of the codes.
    """

    codes: np.ndarray
    names: tuple[str, ...]
    bundle_id: str
    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, names: Sequence[str], bundle_id: str) -> StyleBank:
        """The bank of (N, C) codes, with their statistics.

        Raises:
            BadBankError: there are no codes.
        """
        if not len(codes):
            raise BadBankError("a style bank needs at least one style, and no image could be used")
        centered = codes.astype(np.float64) - (mean := codes.mean(axis=0, dtype=np.float64))
        return cls(codes.astype(np.float32), tuple(names), bundle_id, mean, centered.T @ centered / len(codes))

    @cached_property
    def factor(self) -> np.ndarray:
        """(C, C) float64 with factor @ factor.T = covariance; it also exists if there are fewer styles than dimensions."""
        variances, axes = np.linalg.eigh(self.covariance)
        return axes * np.sqrt(variances.clip(min=0))

    def pick(self, draws: np.ndarray) -> np.ndarray:
        """Styles (B,) int64 for draws (B,) uniform in [0, 1)."""
        return np.minimum((draws * len(self.codes)).astype(np.int64), len(self.codes) - 1)

    def gaussian_codes(self, normals: np.ndarray) -> np.ndarray:
        """Codes (B, C) float32 of the Gaussian with the bank's mean and covariance, for standard normal draws (B, C)."""
        return (self.mean + normals @ self.factor.T).astype(np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank as one safetensors file, whole or not at all; equal banks are equal files."""
        tensors = {"codes": self.codes, "mean": self.mean, "covariance": self.covariance}
        metadata = {"format": _FORMAT, "bundle_id": self.bundle_id, "names": json.dumps(self.names)}
        storage.write_bytes(path, _in_order(save(tensors, metadata)))

    @classmethod
    def load(cls, path: str | os.PathLike[str], bundle_id: str | None = None) -> StyleBank:
        """The bank in the file.

        Args:
            bundle_id: The code space that the codes must belong to; not checked if not given.

        Raises:
            BadBankError: the file is missing, is not a bank, or holds codes of another stylizer.
        """
        if not storage.exists(path):
            raise BadBankError(f"there is no style bank {path}; make one with `ray-sassl stylize bank STYLE_DATA --out {path}`")
        content = storage.read_bytes(path)
        metadata = _metadata(content, path)
        try:
            tensors = {name: _array(tensor) for name, tensor in deserialize(content)}
            codes, mean, covariance = (tensors[name] for name in ("codes", "mean", "covariance"))
            bank = cls(codes, tuple(as_texts(parse_json(metadata["names"], "names"))), metadata["bundle_id"], mean, covariance)
            _check(bank)
        except (SafetensorError, KeyError, ValueError) as error:
            raise BadBankError(f"{path} is damaged, or is not a style bank: {error}") from error
        if bundle_id is not None and bank.bundle_id != bundle_id:
            raise BadBankError(
                f"the style bank {path} has codes of {bank.bundle_id}, which mean nothing to {bundle_id}; "
                "compute it again with this stylizer"
            )
        return bank


def _check(bank: StyleBank) -> None:
    """Check that the parts of a bank fit together, and that its numbers are finite.

    Raises:
        ValueError: they do not, or are not.
    """
    shapes = bank.codes.shape, bank.mean.shape, bank.covariance.shape
    number, width = shapes[0] if len(shapes[0]) == 2 else (0, 0)
    if number == 0 or shapes[1:] != ((width,), (width, width)) or len(bank.names) != number:
        raise ValueError(f"codes, mean and covariance have the shapes {shapes}, and there are {len(bank.names)} names")
    if not all(np.isfinite(part).all() for part in (bank.codes, bank.mean, bank.covariance)):
        raise ValueError("it has numbers that are not finite")


def _metadata(content: bytes, path: str | os.PathLike[str]) -> dict[str, str]:
    try:
        metadata = read_header(content, str(path)).metadata
    except UsageError as error:
        raise BadBankError(str(error)) from error
    if metadata.get("format") != _FORMAT:
        raise BadBankError(f"{path} is not a style bank; make one with `ray-sassl stylize bank STYLE_DATA --out {path}`")
    return metadata


def _in_order(content: bytes) -> bytes:
    """The safetensors file with its header sorted, since the order of metadata is random; tensors are placed relative to its end."""
    entries, end = read_header(content, "the bank")
    header = json.dumps(entries, sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + content[end:]


def _array(tensor: dict) -> np.ndarray:
    dtypes = {"F32": np.float32, "F64": np.float64}
    return np.frombuffer(tensor["data"], dtypes[tensor["dtype"]]).reshape(tensor["shape"])
