"""Encoders from Python: load them, export them, compute features of whole data sets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ray_sassl.api.data import DataSource, as_data
from ray_sassl.exporting.encoder import Encoder, Network, load_encoder
from ray_sassl.exporting.export import Export, export_encoder
from ray_sassl.exporting.formats import Format
from ray_sassl.files import storage
from ray_sassl.files.lock import hold_folder
from ray_sassl.runs.configs import Overrides, override_list

if TYPE_CHECKING:
    from ray_sassl.orchestrate.batch.embed import EmbedResult

__all__ = ["embed", "export", "load_encoder"]


def export(
    run: str | os.PathLike[str],
    out: str = "encoder",
    *,
    format: Format = "safetensors",
    with_head: bool = False,
    overrides: Overrides = None,
    strict: bool = False,
    size_px: int | None = None,
    license: str | None = None,
) -> Export:
    """Write an encoder for use elsewhere: the weights, a card and the config. The file is checked before it is written.

    Args:
        run: A run directory (its newest intact checkpoint) or a checkpoint.
        out: A folder or URI without an export.
        format: "torchvision", "timm", "hf", "onnx" or "safetensors".
        with_head: Also fit a linear classifier on `evaluate.train` and add it.
        overrides: Changes to the run's config, such as where labeled images are.
        strict: Refuse data of which anything is left out, instead of saying so.
        size_px: Side of the images; by default as the run was evaluated, else trained.
        license: License of the weights, for the card.

    Raises:
        UsageError: there is no checkpoint, the format does not fit the network, or the folder contains an export.
    """
    changes = override_list(overrides)
    return export_encoder(
        os.fspath(run), format, out, with_head=with_head, overrides=changes, strict=strict, size_px=size_px, license=license
    )


def embed(
    encoder: Encoder | str | os.PathLike[str],
    data: DataSource,
    out: str = "features.parquet",
    *,
    part_rows: int = 4096,
    backbone: Network = None,
    size_px: int | None = None,
    actors: int | None = None,
    actor_cpus: float = 1.0,
    actor_gpus: float = 0.0,
    address: str | None = None,
    show_progress: bool = True,
) -> EmbedResult:
    """Write the features of a whole data set, on Ray, with ids, keys and labels; a repeated call continues a stopped one.

    Args:
        encoder: An encoder, or what `load_encoder` takes: a run, a checkpoint, an export (except ONNX), weights of others.
        data: The images.
        out: A file `NAME.parquet`, or a folder for several files.
        part_rows: Rows per part, which is written whole or not at all.
        backbone: The network, for a file of weights that does not say so, as "resnet50".
        size_px: Side of the images; by default as the run was evaluated, else trained.
        actors: Number of actors; by default as many as the cluster has room for.
        actor_cpus: CPUs per actor.
        actor_gpus: GPUs per actor; a share such as 0.5 is allowed.
        address: Address of a running Ray cluster, as for `pretrain`.
        show_progress: Whether to draw a progress bar.

    Raises:
        UsageError: the encoder or the data set cannot be read, or other features are at `out`.
        FolderInUseError: another command is at work there.
        TooManyBadRowsError: more rows than `max_bad_fraction` of the data cannot be decoded; finished parts stay.
    """
    from ray_sassl.orchestrate.batch.actor_pool import ActorPoolConfig
    from ray_sassl.orchestrate.batch.embed import embed_dataset, is_one_file, parts_folder
    from ray_sassl.orchestrate.runtime.session import ray_session

    storage.check_can_write(out, is_folder=not is_one_file(out))
    loaded = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, backbone=backbone, size_px=size_px)
    pool = ActorPoolConfig(num_actors=actors, num_cpus=actor_cpus, num_gpus=actor_gpus)
    with hold_folder(parts_folder(out), "embed"), ray_session(address):
        return embed_dataset(loaded, as_data(data), out, pool, part_rows=part_rows, show_progress=show_progress)
