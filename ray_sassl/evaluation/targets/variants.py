"""Test sets that change the images of ImageNet, as their authors publish them: Stylized-ImageNet, ImageNet-R, ImageNet-Sketch, ImageNet-C.

Each is a folder of class folders (WNID), ImageNet-C one for each corruption and severity. They are read where they are; their classes are
found among those of the encoder's labeled images by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from ray_sassl.data import DataConfig
from ray_sassl.files.paths import LocalPath
from ray_sassl.plugins import FrozenConfig
from ray_sassl.process.errors import UsageError

ALEXNET_ERRORS = {
    f"imagenet_c_{name}": error
    for name, error in {
        "gaussian_noise": 0.886428,
        "shot_noise": 0.894468,
        "impulse_noise": 0.922640,
        "defocus_blur": 0.819880,
        "glass_blur": 0.826268,
        "motion_blur": 0.785948,
        "zoom_blur": 0.798360,
        "snow": 0.866816,
        "frost": 0.826572,
        "fog": 0.819324,
        "brightness": 0.564592,
        "contrast": 0.853204,
        "elastic_transform": 0.646056,
        "pixelate": 0.717840,
        "jpeg_compression": 0.606500,
    }.items()
}
"""AlexNet's top-1 error under each of the fifteen corruptions of the mCE, the mean over the five severities. From AugMix's official code
(google-research/augmix, imagenet.py: "taken from https://github.com/hendrycks/robustness", whose present version prints no such table)."""

_SEVERITIES = ("1", "2", "3", "4", "5")
_SHOWN = 3


class Variant(FrozenConfig):
    """One of the published test sets.

    Attributes:
        name: Which one. `stylized_imagenet`: Geirhos et al. 2019, arXiv 1811.12231 (made by the authors' code); `imagenet_r`: renditions of
            200 classes, Hendrycks et al. 2021, arXiv 2006.16241; `imagenet_sketch`: Wang et al. 2019, arXiv 1905.13549; `imagenet_c`:
            Hendrycks and Dietterich 2019, arXiv 1903.12261, `CORRUPTION/SEVERITY/WNID/*.JPEG`.
        path: Its folder.
    """

    name: Literal["stylized_imagenet", "imagenet_r", "imagenet_sketch", "imagenet_c"]
    path: Annotated[str, LocalPath(), Field(min_length=1)]

    def parts(self) -> dict[str, list[DataConfig]]:
        """The folders of classes by the name of their score: one, or of ImageNet-C the severities of each corruption.

        Raises:
            UsageError: the folder is missing, or laid out otherwise.
        """
        root = Path(self.path)
        if not root.is_dir():
            raise UsageError(f"{self.name}: there is no folder {root}")
        if self.name != "imagenet_c":
            inner = root / "val" if (root / "val").is_dir() else root
            return {self.name: [_class_folders(inner, self.name)]}
        # The tar files of the authors unpack to blur/, digital/, extra/, noise/ and weather/, or to the corruptions themselves.
        groups = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        found = {path.name: path for group in groups for path in sorted(group.iterdir()) if (path / "1").is_dir()}
        if not found:
            raise UsageError(f"{self.name}: {root} has no folders CORRUPTION/SEVERITY, such as gaussian_noise/1")
        parts = {}
        for name, folder in sorted(found.items()):
            if missing := [severity for severity in _SEVERITIES if not (folder / severity).is_dir()]:
                raise UsageError(f"{self.name}: {folder} lacks the severities {', '.join(missing)}")
            parts[f"{self.name}_{name}"] = [_class_folders(folder / severity, self.name) for severity in _SEVERITIES]
        return parts


def _class_folders(folder: Path, name: str) -> DataConfig:
    if not any(path.is_dir() for path in folder.iterdir()):
        raise UsageError(f"{name}: {folder} has no folders of classes, such as n01443537")
    return DataConfig(path=str(folder), format="folder")


def classes_in(names: tuple[str, ...], known: tuple[str, ...], where: str) -> np.ndarray:
    """(len(names),) int64: the labels of these classes among the known ones.

    Raises:
        UsageError: some are not among them.
    """
    number = {name: label for label, name in enumerate(known)}
    if unknown := [name for name in names if name not in number]:
        raise UsageError(
            f"{where} has classes that the train images have not, such as {', '.join(unknown[:_SHOWN])}; those are called "
            f"{', '.join(known[:_SHOWN]) or 'nothing'}. Train images in folders called by WNID have the same names"
        )
    return np.array([number[name] for name in names], np.int64)
