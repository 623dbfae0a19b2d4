"""Checkpoints: a folder that is whole or absent, with the sha256 of each file, and nothing that needs unpickling.

step-00001234/model.safetensors   the backbone, for whoever wants the encoder
              state.pt            everything else that the run needs to continue (loaded with weights_only=True)
              config.yaml         the resolved config: enough to start the same run again
              seen.json           which samples of which epoch the run has trained on
              manifest.json       step, format version, bytes and sha256 of each file
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.train.checkpoint_folder import (
    CONFIG,
    MODEL,
    SEEN,
    STATE,
    BadCheckpointError,
    Manifest,
    checkpoint_path,
    list_checkpoints,
    log_refused,
    read_file,
    read_manifest,
    seen_of,
    state_of,
    weights_of,
    whole_checkpoints,
    write_folder,
)
from ray_sassl.train.context import Context, bytes_from_rank_zero, from_rank_zero

_BACKBONE = "backbone."


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        path: Its folder.
        step: Optimizer updates done when it was written.
        backbone: The encoder's state dict.
        state: The rest: `method` (state dict without the backbone), `optimizer`, ...
        seen: Which samples the run had trained on.
        config_yaml: The resolved config of the run that wrote it.
    """

    path: str
    step: int
    backbone: dict[str, Tensor]
    state: dict[str, Any]
    seen: SeenIds
    config_yaml: str

    def load_method(self, method: nn.Module) -> None:
        """Put the weights and buffers into a method built from the same config."""
        method.load_state_dict({_BACKBONE + name: tensor for name, tensor in self.backbone.items()} | self.state["method"])


def write_checkpoint(
    run_dir: str, step: int, weights: dict[str, Tensor], state: dict[str, Any], seen: SeenIds, config_yaml: str, keep: int
) -> str:
    """Write `checkpoints/step-...` and remove all but the newest `keep`; the folder appears whole or not at all.

    Checkpoints of later steps are removed too: this run has continued from an earlier one because they were refused.

    Args:
        run_dir: Local path or URI.
        step: Optimizer updates done.
        weights: A method's state dict; entries that begin with `backbone.` go to model.safetensors, the others to state.pt.
        state: Whatever else the run needs: tensors, numbers, strings, bytes, and dicts and lists of them.
        seen: Which samples the run has trained on.
        config_yaml: The resolved config.
        keep: How many checkpoints to keep, at least 1.

    Returns:
        The checkpoint's path.

    Raises:
        OSError, UsageError: the disk is full, or the run directory cannot be reached; earlier checkpoints are unchanged.
    """
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    backbone = {name.removeprefix(_BACKBONE): t.cpu().contiguous() for name, t in whole.items() if name.startswith(_BACKBONE)}
    rest = {name: tensor for name, tensor in whole.items() if not name.startswith(_BACKBONE)}
    buffer = io.BytesIO()
    torch.save({"method": rest, **state}, buffer)
    files = {
        MODEL: safetensors.torch.save(backbone, metadata={"format": "pt"}),
        STATE: buffer.getvalue(),
        CONFIG: config_yaml.encode(),
        SEEN: seen.encode(),
    }
    folder = checkpoint_path(run_dir, step)
    write_folder(folder, step, files)
    kept = [path for number, path in whole_checkpoints(run_dir) if number <= step][-keep:]
    for _, path in list_checkpoints(run_dir):
        if path not in kept:
            storage.remove(path)
    return folder


def read_checkpoint(path: str) -> Checkpoint:
    """Read a checkpoint and verify every file against the manifest.

    Raises:
        BadCheckpointError: a file is missing or is not the one that was written, or this program cannot read the format.
    """
    return _decoded(path, *_read(path))


def read_checkpoint_once(path: str, context: Context) -> Checkpoint:
    """As `read_checkpoint`, on every rank; only rank 0 reads the files, and hands them to the others. Every rank must call it.

    Raises:
        BadCheckpointError: on every rank, in rank 0's words.
    """
    if context.world_size == 1:
        return read_checkpoint(path)
    found: tuple[Manifest, dict[str, bytes]] | str = ""
    checkpoint = None
    if context.rank == 0:
        try:
            found = _read(path)
            checkpoint = _decoded(path, *found)
        except BadCheckpointError as error:
            found = str(error)
    manifest = from_rank_zero(found if isinstance(found, str) else found[0])
    if isinstance(manifest, str):
        raise BadCheckpointError(manifest)
    files = found[1] if isinstance(found, tuple) else {}
    for name, stated in manifest.files.items():
        files[name] = bytes_from_rank_zero(files.get(name, b""), int(stated["bytes"]))
    return checkpoint or _decoded(path, manifest, files)


def _read(path: str) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and the files that it names."""
    manifest = read_manifest(path)
    return manifest, {name: read_file(path, name, manifest) for name in manifest.files}


def _decoded(path: str, manifest: Manifest, files: dict[str, bytes]) -> Checkpoint:
    state = state_of(path, files[STATE])
    seen = seen_of(path, files.get(SEEN), state)
    state.pop("seen", None)
    config_yaml = files[CONFIG].decode(errors="backslashreplace")
    return Checkpoint(path, manifest.step, weights_of(path, files[MODEL]), state, seen, config_yaml)


def latest_checkpoint(run_dir: str) -> Checkpoint | None:
    """The newest intact checkpoint of the run, or None; damaged ones are logged and skipped."""
    for _, path in reversed(list_checkpoints(run_dir)):
        try:
            return read_checkpoint(path)
        except BadCheckpointError as error:
            log_refused(error)
    return None
