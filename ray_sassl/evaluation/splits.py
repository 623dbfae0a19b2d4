"""Random parts of a train set, drawn class by class; equal seeds give equal parts."""

from __future__ import annotations

import numpy as np

from ray_sassl.process.errors import UsageError


def places_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """For each class that occurs in labels (N,), the places of its images, in order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(labels) else []


def stratified(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: about this share of each class's images, at least one of every class that has one."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for rows in map(rng.permutation, places_by_class(labels)):
        chosen[rows[: max(1, round(share * len(rows)))]] = True
    return chosen


def held_out(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: about this share of each class's images, held out to choose a setting; at least one image of each class is left to fit on.

    Raises:
        UsageError: no class has two images.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for rows in map(rng.permutation, places_by_class(labels)):
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
    for rows in places_by_class(labels):
        if len(rows) < num:
            raise UsageError(f"class {labels[rows[0]]} has {len(rows)} train images, fewer than the {num} to draw")
        places.append(rng.choice(rows, num, replace=False))
    return np.concatenate(places)


def up_to_n_of_each(labels: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(at most C * num,) int64: the places of `num` images of each class, drawn without replacement; all of a class that has fewer."""
    return np.concatenate([rng.permutation(rows)[:num] for rows in places_by_class(labels)])
