"""Train, validation and test images are kept apart: what a score was fitted on or chosen by must not be what it is reported on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ray_sassl.config.schema import EvaluateConfig
from ray_sassl.data import SYNTHETIC, DataConfig
from ray_sassl.data.hub import is_hub
from ray_sassl.data.sources import find_sources
from ray_sassl.files import storage
from ray_sassl.files.paths import absolute, with_absolute_paths
from ray_sassl.process.errors import UsageError

_NAMED = 3
_VARIES = re.compile(r"[*?\[{]")


def check_selection(evaluate: EvaluateConfig) -> None:
    """See that the images that choose are not those that report, by their files' names and places; no file is opened, and test images may
    be absent.

    Raises:
        UsageError: validation images are test images or train images, or train images are test images.
    """
    train, own, test = evaluate.train, evaluate.own_validation, evaluate.test
    if own is not None and test is not None and (files := files_in_both(own, test)):
        raise UsageError(
            f"evaluate.validation and evaluate.test are the same images ({_listed(files)}). Runs and searches choose by validation images, "
            "and what was chosen by the test images scores too well on them. Leave out evaluate.validation, which then is a share of "
            "evaluate.train, or give other images"
        )
    if own is not None and train is not None and (files := files_in_both(own, train)):
        raise UsageError(
            f"evaluate.validation and evaluate.train are the same images ({_listed(files)}), so every image would be its own neighbor. For "
            "a share of the train images give a number, such as evaluate.validation=0.1"
        )
    if train is not None and test is not None:
        check_train_and_test(train, test)


def check_train_and_test(train: DataConfig, test: DataConfig) -> None:
    """See that no file holds both train and test images.

    Raises:
        UsageError: one does.
    """
    if _may_meet(train, test) and (files := files_in_both(train, test)):
        raise UsageError(
            f"the train and the test images are the same ({_listed(files)}), so the score would be that of images learned by heart. "
            "Give other test images (evaluate.test.path=...), or none: evaluate.test=null"
        )


def files_in_both(first: DataConfig, second: DataConfig) -> list[str]:
    """The files that both data sets have, under whatever name or link; what cannot be listed has none. No file is opened."""
    if set(map(absolute, first.paths)) & set(map(absolute, second.paths)):
        return [path for path in first.paths if absolute(path) in set(map(absolute, second.paths))]
    known = {_identity(path) for path in _listing(first)}
    return [path for path in _listing(second) if _identity(path) in known] if known else []


def _listing(config: DataConfig) -> list[str]:
    try:
        return list(find_sources(with_absolute_paths(config)).files.paths())
    except (UsageError, OSError):
        return []


def _identity(path: str) -> object:
    """What two names of one file have in common."""
    if storage.is_uri(path):
        return storage.without_options(path)
    try:
        found = os.stat(path)
    except OSError:
        return path
    return found.st_dev, found.st_ino


def _may_meet(first: DataConfig, second: DataConfig) -> bool:
    """Whether one lies below a folder of the other, so that it is worth listing them; two disjoint folders of a million files are not."""
    bases = [[_base(path) for path in config.paths] for config in (first, second)]
    return any(_is_below(one, other) or _is_below(other, one) for one in bases[0] for other in bases[1])


def _base(path: str) -> str:
    """The file or folder that is given, or the folder in which names vary."""
    if path in SYNTHETIC:
        return f"synthetic:{path.partition(':')[2] or 'train'}"
    if is_hub(path):
        return path
    fixed = _VARIES.split(storage.without_options(path), maxsplit=1)[0]
    if fixed != storage.without_options(path):
        fixed = fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else ".")
    return (fixed if storage.is_uri(path) else os.path.realpath(absolute(fixed))).rstrip("/")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - _NAMED:,} more files" if len(files) > _NAMED else ""
    return ", ".join(files[:_NAMED]) + more
