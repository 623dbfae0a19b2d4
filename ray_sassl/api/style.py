"""Styles from Python: banks, previews, stylized copies of data sets, and your own stylizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_sassl.api.data import DataSource, as_data
from ray_sassl.config.overrides import apply_overrides, path_of
from ray_sassl.data.convert import ShardFormat, check_target
from ray_sassl.data.quarantine import BadRow
from ray_sassl.data.reading import build_index
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.files.own import write_picture
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, override_list
from ray_sassl.style.datasets import StyleJobConfig, sample_squares

if TYPE_CHECKING:
    from ray_sassl.orchestrate.batch.distill import DistillResult
    from ray_sassl.orchestrate.batch.styles import BankResult, StylizeResult

_STYLE_IMAGE_PX = 256
"""Side of the styles in a preview."""
_DEFAULT = "swift"
_HINT = " (our own small one; stylize=magenta takes the published one)"


def style_job(overrides: Overrides = None, bank: str | None = None, only: Sequence[str] = ()) -> tuple[StyleJobConfig, str]:
    """How images are stylized, and a hint if another stylizer would be better.

    Args:
        overrides: Changes such as `{"stylize": "swift", "sassl.alpha": [0.5, 1]}`. By default the published network if its weights are
            here, else `swift`, at full strength.
        bank: A style bank; by default styles come from other images of the data set.
        only: The parts of the config that have an effect on the caller's work; all if empty.

    Raises:
        UsageError: an override is wrong or has no effect, or two banks are named.
    """
    given = override_list(overrides)
    names = [path_of(override) for override in given]
    for name in names:
        if only and name.partition(".")[0] not in only:
            raise UsageError(f"{name} has no effect here; only {' and '.join(only)} have, as in stylize=swift")
    if bank is not None:
        if "sassl.bank" in names:
            raise UsageError("--bank and sassl.bank both name a style bank; give one of them")
        given += [("sassl.bank", bank)]
        if "sassl.style_source" not in names:
            given += [("sassl.style_source", "bank")]
    return apply_overrides(StyleJobConfig(stylize=_DEFAULT), given), "" if "stylize" in names else _HINT


def build_style_bank(
    data: DataSource,
    out: str = "styles.safetensors",
    *,
    overrides: Overrides | StyleJobConfig = None,
    actors: int | None = None,
    actor_cpus: float = 1.0,
    actor_gpus: float = 0.0,
    address: str | None = None,
    show_progress: bool = True,
) -> BankResult:
    """Compute the style codes of a data set, on Ray, for `sassl.style_source=bank` or `gaussian`.

    Args:
        data: Paintings and textures.
        out: Path or URI of the bank.
        overrides: Changes to the stylizer, such as `{"stylize": "magenta"}`, or a whole config.
        actors: Number of actors; by default as many as the cluster has room for.
        actor_cpus: CPUs per actor.
        actor_gpus: GPUs per actor; a share such as 0.25 is allowed.
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw a progress bar.

    Raises:
        UsageError: the data set cannot be read, the stylizer has no weights, or `out` cannot be written.
        TooManyBadRowsError: more rows than `max_bad_fraction` of the data cannot be decoded.
    """
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.styles import make_bank

    config = overrides if isinstance(overrides, StyleJobConfig) else style_job(overrides, only=("stylize",))[0]
    pool = ActorPoolConfig(num_actors=actors, num_cpus=actor_cpus, num_gpus=actor_gpus)
    return make_bank(as_data(data, label_column=None), out, config, pool, address=address, show_progress=show_progress)


def stylize_dataset(
    data: DataSource,
    target: str,
    *,
    overrides: Overrides | StyleJobConfig = None,
    bank: str | None = None,
    copies: int = 1,
    format: ShardFormat | None = None,
    shard_rows: int = 1024,
    actors: int | None = None,
    actor_cpus: float = 1.0,
    actor_gpus: float = 0.0,
    address: str | None = None,
    show_progress: bool = True,
) -> StylizeResult:
    """Write stylized copies of a data set, on Ray, with its labels, keys and order; a repeated call continues a stopped one.

    Args:
        data: The source.
        target: An empty folder or URI, or one where the same job was stopped.
        overrides: Changes to the stylizer and the strength, or a whole config; by default full strength.
        bank: A style bank; by default styles come from other images of the data set.
        copies: Copies with other styles; more than one go to `target/copy-0`, `target/copy-1`, ...
        format: "parquet", "webdataset" or "folder"; by default that of the source.
        shard_rows: Rows per shard, which is written whole or not at all.
        actors: Number of actors; by default as many as the cluster has room for.
        actor_cpus: CPUs per actor.
        actor_gpus: GPUs per actor; a share such as 0.25 is allowed.
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw a progress bar.

    Raises:
        FolderInUseError: another command is at work in the target.
        UsageError: the source cannot be read, the target contains something else or is inside the source, or the stylizer has no weights.
        TooManyBadRowsError: more rows than `max_bad_fraction` of the data cannot be used; written shards stay.
    """
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.styles import stylize_dataset as stylize

    config = overrides if isinstance(overrides, StyleJobConfig) else style_job(overrides, bank)[0]
    pool = ActorPoolConfig(num_actors=actors, num_cpus=actor_cpus, num_gpus=actor_gpus)
    source = as_data(data)
    check_target(target, source)
    with hold_folder(target, "stylize dataset"):
        return stylize(
            source,
            target,
            config,
            pool,
            format_=format,
            copies=copies,
            shard_rows=shard_rows,
            address=address,
            show_progress=show_progress,
        )


@dataclass(frozen=True)
class PreviewResult:
    """A preview: its path, and images that could not be used."""

    path: str
    bad_rows: list[BadRow]


def preview_styles(
    images: DataSource,
    styles: DataSource,
    out: str = "styles.png",
    *,
    overrides: Overrides | StyleJobConfig = None,
    num_images: int = 4,
    num_styles: int = 3,
    size_px: int = 224,
) -> PreviewResult:
    """Draw images in their own and in other styles, at the paper's strength and at full strength; both are drawn at random by the seed.

    Args:
        images: Contents: a data set or a single image.
        styles: Styles: a data set or a single image.
        out: Path or URI of the PNG.
        overrides: Changes to the stylizer and the seed, or a whole config.
        num_images: Content images.
        num_styles: Styles.
        size_px: Side of the content squares.

    Raises:
        UsageError: images cannot be read, the stylizer has no weights, or `out` cannot be written.
    """
    import torch

    from ray_sassl.runs.pictures import styles_picture

    config = overrides if isinstance(overrides, StyleJobConfig) else style_job(overrides, only=("stylize", "seed"))[0]
    storage.check_can_write(out)
    stylizer = config.stylize.build(torch.device("cpu"))
    contents, _, bad = sample_squares(build_index(as_data(images, label_column=None)), num_images, size_px, config.seed)
    side = max(_STYLE_IMAGE_PX, stylizer.style_px)
    chosen, names, bad_styles = sample_squares(build_index(as_data(styles, label_column=None)), num_styles, side, config.seed)
    write_picture(out, styles_picture(stylizer, contents, chosen, torch.device("cpu"), style_names=names))
    return PreviewResult(out, [*bad, *bad_styles])


def distill_stylizer(
    contents: Sequence[DataSource],
    styles: Sequence[DataSource],
    out: str = "student.safetensors",
    *,
    settings: dict[str, Any] | None = None,
    start: str | None = None,
    exclude: Sequence[str] = (),
    weights: str | None = None,
    work_dir: str | None = None,
    workers: int = 1,
    worker_cpus: float = 1.0,
    use_gpu: bool = False,
    address: str | None = None,
    show_progress: bool = True,
) -> DistillResult:
    """Train a small stylizer to stylize as the published one does, for `stylize=swift`; a repeated call continues a stopped one.

    Args:
        contents: Photographs.
        styles: Paintings and textures.
        out: Path or URI of the student's weights.
        settings: Fields of `DistillConfig`, such as `{"steps": 15000}`; by default those of the shipped weights.
        start: An earlier student's file, or "swift" for the shipped one: training continues from it at a quarter of the rates.
        exclude: Endings of names of images that are not used for training.
        weights: The teacher's converted weights; by default those in the cache.
        work_dir: Folder for crops and checkpoints; by default `OUT.work`.
        workers: Training workers, among which each batch is shared.
        worker_cpus: CPUs per worker.
        use_gpu: Whether each worker takes a GPU.
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw progress bars.

    Raises:
        MissingWeightsError: the teacher's weights are not on this machine.
        UsageError: a data set cannot be used, the work directory belongs to another job, or the cluster is too small.
    """
    from ray_sassl.orchestrate.batch.distill import distill
    from ray_sassl.orchestrate.pretraining.train_job import Workers
    from ray_sassl.orchestrate.runtime.session import ray_session
    from ray_sassl.style.distillation import FINE_TUNING, DistillConfig
    from ray_sassl.style.stylizers.magenta import Config as TeacherConfig
    from ray_sassl.style.stylizers.swift import SHIPPED

    fields: dict[str, Any] = (settings or {}) | (FINE_TUNING if start is not None else {})
    config = DistillConfig(**fields)
    with ray_session(address):
        return distill(
            [as_data(data, label_column=None) for data in contents],
            [as_data(data, label_column=None) for data in styles],
            out,
            config,
            work_dir=work_dir or f"{out}.work",
            teacher=TeacherConfig(weights=weights),
            start=str(SHIPPED) if start == "swift" else start,
            excluded=exclude,
            workers=Workers(workers, worker_cpus, use_gpu),
            show_progress=show_progress,
        )
