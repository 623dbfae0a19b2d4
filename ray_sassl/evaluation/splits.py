"""Random parts of a train set, drawn class by class; equal seeds give equal parts."""

from __future__ import annotations

import numpy as np

from ray_sassl.plugins import UsageError


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: about this share of each class's images, at least one of every class that has one."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        chosen[rows[: max(1, round(share * len(rows)))]] = True
    return chosen


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: about this share of each class's images, held out to choose a setting; at least one image of each class is left to fit on.

    Raises:
        UsageError: no class has two images.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if len(rows) > 1:
            chosen[rows[: min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    if not chosen.any():
        raise UsageError("no class has two train images, so none can be held out to choose a setting; give the setting instead")
    return chosen


def n_of_each(labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(C * num,) int64: the places of `num` images of each class, drawn without replacement.

    Raises:
        UsageError: a class has fewer images.
    """
    places = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < num:
            raise UsageError(f"class {label} has {len(rows)} train images, fewer than the {num} to draw")
        places.append(rng.choice(rows, num, replace=False))
    return np.concatenate(places)


def up_to_n_of_each(labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(at most C * num,) int64: the places of `num` images of each class, drawn without replacement; all of a class that has fewer."""
    return np.concatenate([rng.permutation(np.flatnonzero(labels == label))[:num] for label in np.unique(labels)])
