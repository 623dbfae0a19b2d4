"""Images that are in two data sets, found by the hash of their bytes: a re-encoded copy is another image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_sassl.data.index import Index
from ray_sassl.data.reading import each_group, read_groups

Digests = tuple[np.ndarray, np.ndarray]
"""Sample ids (n,) int64 and 64 bits of the hash of each one's bytes (n,) uint64; rows that cannot be read are left out."""


@dataclass(frozen=True)
class Overlap:
    """The images that two data sets have in common.

    Attributes:
        num_other: Images of the other data set that could be read.
        num_shared: How many of these are in the first data set too.
        named: Some of the shared images: the name in the first data set and the name in the other one.
    """

    num_other: int
    num_shared: int
    named: tuple[tuple[str, str], ...]


def digests(index: Index, groups: Sequence[int]) -> Digests:
    """The digests of the rows of these row groups."""
    ids, hashes = [], []
    for rows in each_group(index, groups):
        for sample_id, encoded in zip(rows.sample_id.tolist(), rows.encoded, strict=True):
            if isinstance(encoded, bytes):
                ids.append(sample_id)
                hashes.append(int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little"))
    return np.array(ids, np.int64), np.array(hashes, np.uint64)


def overlap_of(first: Index, of_first: Iterable[Digests], other: Index, of_other: Iterable[Digests], named: int = 20) -> Overlap:
    """The overlap, from the digests of all rows of both data sets, with the names of up to `named` images."""
    ids, hashes = _joined(of_first)
    other_ids, other_hashes = _joined(of_other)
    order = np.argsort(hashes, kind="stable")
    places = np.minimum(np.searchsorted(hashes, other_hashes, sorter=order), max(0, len(hashes) - 1))
    is_shared = hashes[order[places]] == other_hashes if len(hashes) else np.zeros(len(other_hashes), bool)
    shown = np.flatnonzero(is_shared)[:named]
    names = tuple((_name(first, int(ids[order[places[place]]])), _name(other, int(other_ids[place]))) for place in shown)
    return Overlap(len(other_ids), int(is_shared.sum()), names)


def _joined(parts: Iterable[Digests]) -> Digests:
    columns = list(zip(*parts, strict=True))
    if not columns:
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    return np.concatenate(columns[0]), np.concatenate(columns[1])


def _name(index: Index, sample_id: int) -> str:
    group = int(np.searchsorted(index.group_first, sample_id, side="right")) - 1
    return read_groups(index, [group]).take(np.array([sample_id])).key[0]
