"""How strong a run's augmentations are, as the run directory has it; `dosing.py` measures it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from ray_sassl.files import storage
from ray_sassl.files.json_files import as_number, read_json
from ray_sassl.files.paths import read_inside
from ray_sassl.process.errors import UsageError

DOSE = "dose.json"
STYLE = "style"


@dataclass(frozen=True)
class Dose:
    """How strong one augmentation of one view is: means over images to which it is applied.

    Attributes:
        view: The view's name.
        what: `style`, `jitter`, `grayscale`, `blur`, `solarize`, or `all together`.
        prob: Chance that it is applied.
        pixels: Mean absolute change in gray levels, of 255.
        ssim: Structural similarity to the image before; None for images below 11 px.
        codes: For style, how far the image's own style code moves, as a share of the distance between the codes of two images.
        reconstruction: For style, the share of the change that is left with alpha = 0, so is no style but what the stylizer loses.
    """

    view: str
    what: str
    prob: float
    pixels: float
    ssim: float | None
    codes: float | None = None
    reconstruction: float | None = None


def style_pixels(doses: Sequence[Dose]) -> float:
    """The dose of style on the first view that is stylized, in gray levels."""
    return next(dose.pixels for dose in doses if dose.what == STYLE)


def write_doses(run_dir: str, doses: Sequence[Dose], num_images: int) -> None:
    """Write `dose.json` to the run directory."""
    storage.write_text(storage.join(run_dir, DOSE), json.dumps({"images": num_images, "doses": [asdict(dose) for dose in doses]}, indent=2))


def read_doses(run_dir: str, left_out: list[str]) -> list[Dose]:
    """The doses in a run directory; none for runs of earlier versions. What is damaged is left out, and named in `left_out`."""
    path = storage.join(run_dir, DOSE)
    tree = read_inside(read_json, path, run_dir, left_out)
    try:
        return doses_in(tree) if isinstance(tree, dict) else []
    except UsageError as error:
        left_out.append(f"{path}: {error}")
        return []


def doses_in(tree: dict[str, object]) -> list[Dose]:
    """The doses in the content of `dose.json`.

    Raises:
        UsageError: it does not hold doses.
    """
    entries = tree.get("doses")
    found = []
    for entry in entries if isinstance(entries, list) else [None]:
        if not isinstance(entry, dict) or set(entry) != set(Dose.__dataclass_fields__):
            raise UsageError("it does not hold doses")
        texts, numbers = ([entry[name] for name in names] for names in (("view", "what"), ("prob", "pixels")))
        optional = [entry[name] for name in ("ssim", "codes", "reconstruction")]
        if not all(isinstance(text, str) for text in texts) or None in map(as_number, numbers):
            raise UsageError("it does not hold doses")
        found.append(Dose(*texts, *map(float, numbers), *map(as_number, optional)))
    return found


def rows_of(doses: Sequence[Dose]) -> Iterator[tuple[str, ...]]:
    """The doses as rows of text, under `HEADS`."""
    for dose in doses:
        shares = ("" if share is None else f"{share:.0%}" for share in (dose.codes, dose.reconstruction))
        ssim = "" if dose.ssim is None else f"{dose.ssim:.3f}"
        yield dose.view, dose.what, f"{dose.prob:.0%}", f"{dose.pixels:.2f}", ssim, *shares


HEADS = ("view", "change", "chance", "gray levels", "SSIM", "style moves", "alpha = 0")
NOTE = (
    "Means over images to which the change is applied. Gray levels: mean absolute change, of 255. Style moves: how far the image's own "
    "style code moves, as a share of the distance between two images. Alpha = 0: the share of the change that is left without the "
    "partner's style, so is what the stylizer loses of any image."
)
