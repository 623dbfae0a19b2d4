"""Checkpoints: a folder that is whole or absent, with the sha256 of each file, and nothing that needs unpickling.

step-00001234/model.safetensors   the backbone, for whoever wants the encoder
              state.pt            all else that the run needs to go on (loaded with weights_only=True)
              config.yaml         the resolved config: enough to start the same run again
              manifest.json       step, format version, bytes and sha256 of each file
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
import shutil
import uuid
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ray_sassl.files import storage
from ray_sassl.plugins import UsageError

log = logging.getLogger(__name__)

FORMAT = 1
FILES = ("model.safetensors", "state.pt", "config.yaml")
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{8,})$")
_BACKBONE = "backbone."


class BadCheckpointError(UsageError):
    """A checkpoint that is not what its manifest says."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified.

    Attributes:
        path: Its folder.
        step: Optimizer updates done when it was written.
        backbone: The encoder's state dict.
        state: The rest: `method` (state dict without the backbone), `optimizer`, `seen`, ...
        config_yaml: The resolved config of the run that wrote it.
    """

    path: str
    step: int
    backbone: dict[str, Tensor]
    state: dict[str, Any]
    config_yaml: str

    def load_method(self, method: nn.Module) -> None:
        """Put the weights and buffers into a method built from the same config."""
        method.load_state_dict({_BACKBONE + name: tensor for name, tensor in self.backbone.items()} | self.state["method"])


def save_checkpoint(run_dir: str, step: int, method: nn.Module, state: dict[str, Any], config_yaml: str, keep: int) -> str:
    """`write_checkpoint` of a method as it is now.

    Args:
        method: Its `backbone` goes to model.safetensors, the rest of its state dict to state.pt.
    """
    return write_checkpoint(run_dir, step, method.state_dict(), state, config_yaml, keep)


def write_checkpoint(run_dir: str, step: int, weights: dict[str, Tensor], state: dict[str, Any], config_yaml: str, keep: int) -> str:
    """Write `checkpoints/step-...` and remove all but the newest `keep`; the folder appears whole or not at all.

    Checkpoints of later steps are removed too: this run has gone on from an earlier one because they were refused.

    Args:
        run_dir: Local path or URI.
        step: Optimizer updates done.
        weights: A method's state dict; what begins with `backbone.` goes to model.safetensors, the rest to state.pt.
        state: Whatever else the run needs: tensors, numbers, strings, bytes, and dicts and lists of them.
        config_yaml: The resolved config.
        keep: How many checkpoints to keep, at least 1.

    Returns:
        The checkpoint's path.

    Raises:
        OSError, UsageError: there is no room, or no way there; earlier checkpoints are as they were.
    """
    whole = {name: tensor.detach() for name, tensor in weights.items()}
    backbone = {name.removeprefix(_BACKBONE): t.cpu().contiguous() for name, t in whole.items() if name.startswith(_BACKBONE)}
    rest = {name: tensor for name, tensor in whole.items() if not name.startswith(_BACKBONE)}
    buffer = io.BytesIO()
    torch.save({"method": rest, **state}, buffer)
    files = {
        "model.safetensors": safetensors.torch.save(backbone, metadata={"format": "pt"}),
        "state.pt": buffer.getvalue(),
        "config.yaml": config_yaml.encode(),
    }
    folder = checkpoint_path(run_dir, step)
    _write_folder(folder, files | {MANIFEST: _manifest(step, files)})
    kept = [path for number, path in whole_checkpoints(run_dir) if number <= step][-keep:]
    for _, path in list_checkpoints(run_dir):
        if path not in kept:
            storage.remove(path)
    return folder


def checkpoint_path(run_dir: str, step: int) -> str:
    """Where the run's checkpoint of this step is, or will be."""
    return storage.join(run_dir, "checkpoints", f"step-{step:08d}")


def _manifest(step: int, files: dict[str, bytes]) -> bytes:
    """The manifest as a pure function of what it describes, so that a byte of it that changes is noticed as well."""
    digests = {name: {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()} for name in FILES}
    return json.dumps({"format": FORMAT, "step": step, "files": digests}, indent=2).encode()


def list_checkpoints(run_dir: str) -> list[tuple[int, str]]:
    """(step, path) of the run's checkpoints, oldest first; whether they are sound is not looked at."""
    entries = storage.list_dir(storage.join(run_dir, "checkpoints"))
    matches = ((_FOLDER.fullmatch(storage.name_of(entry.path)), entry.path) for entry in entries if not entry.is_file)
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def whole_checkpoints(run_dir: str) -> list[tuple[int, str]]:
    """Those of `list_checkpoints` that were written to their end; whether their bytes are sound is not looked at."""
    there = list_checkpoints(run_dir)
    if storage.local_path(run_dir) is not None:  # a local folder appears whole
        return there
    return [(step, path) for step, path in there if storage.exists(storage.join(path, MANIFEST))]


def read_checkpoint(path: str) -> Checkpoint:
    """Read a checkpoint and verify every file against the manifest.

    Raises:
        BadCheckpointError: a file is missing or is not the one that was written, or the format is another than this program's.
    """
    written = _read_file(path, MANIFEST)
    try:
        manifest = json.loads(written)
        found_format, step, stated = manifest["format"], manifest["step"], dict(manifest["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpointError(f"{path}: {MANIFEST} cannot be read ({error}); it is damaged") from error
    if found_format != FORMAT:
        raise BadCheckpointError(f"{path}: format {found_format!r}, this program reads format {FORMAT}")
    files = {name: _read_file(path, name) for name in FILES}
    expected = _manifest(step, files)
    of_this_step = (named := _FOLDER.fullmatch(storage.name_of(path))) is None or int(named.group(1)) == step
    if written != expected or not of_this_step:
        digests = json.loads(expected)["files"]
        damaged = next((name for name in FILES if stated.get(name) != digests[name]), MANIFEST)
        raise BadCheckpointError(f"{path}: {damaged} is not the file that was written (it does not agree with {MANIFEST}); it is damaged")
    try:
        state = torch.load(io.BytesIO(files["state.pt"]), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadCheckpointError(f"{path}: state.pt holds more than tensors and plain values, and is not loaded") from error
    backbone = safetensors.torch.load(files["model.safetensors"])
    return Checkpoint(path, step, backbone, state, files["config.yaml"].decode())


def _read_file(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadCheckpointError(f"{path} is not a whole checkpoint: it has no {name}") from error


def latest_checkpoint(run_dir: str) -> Checkpoint | None:
    """The newest sound checkpoint of the run, or None where there is none; damaged ones are named in the log and passed over."""
    for _, path in reversed(list_checkpoints(run_dir)):
        try:
            return read_checkpoint(path)
        except BadCheckpointError as error:
            log.warning("Refused a checkpoint, trying the one before it. %s", error)
    return None


def _write_folder(folder: str, files: dict[str, bytes]) -> None:
    local = storage.local_path(folder)
    if local is None:  # an object store has no folders to rename: the manifest, put last, makes the checkpoint
        for name, data in files.items():
            storage.write_bytes(storage.join(folder, name), data)
        return
    aside = local.with_name(f".{local.name}.{uuid.uuid4().hex[:12]}.part")
    try:
        for name, data in files.items():
            storage.write_bytes(aside / name, data)
        if local.exists():
            shutil.rmtree(local)
        storage.move(aside, local)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
