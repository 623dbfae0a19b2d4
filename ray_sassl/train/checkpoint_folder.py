"""The folder of a checkpoint: its files, its manifest, and the record of seen samples, which is read without the weights.

Importing this module does not import torch, so the processes that make the stream can ask which checkpoint a run continues from.
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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray_sassl.data.seen import SeenIds
from ray_sassl.files import storage
from ray_sassl.files.json_files import parse_json
from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

MODEL, STATE, SEEN, CONFIG, MANIFEST = "model.safetensors", "state.pt", "seen.json", "config.yaml", "manifest.json"
FORMAT = 3
FILES = {1: (MODEL, STATE, CONFIG), 2: (MODEL, STATE, SEEN, CONFIG), 3: (MODEL, STATE, CONFIG, SEEN)}
"""The files by format. Checkpoints of format 1 have the seen samples in state.pt, those of format 2 a bitmap of every epoch that lacks a
row, those of format 3 a list of the rows where they are few. The order differs, so no changed byte turns one into another."""
_FOLDER = re.compile(r"step-(\d{8,})$")


class BadCheckpointError(UsageError):
    """A checkpoint does not match its manifest."""


@dataclass(frozen=True)
class Manifest:
    """The content of a checkpoint.

    Attributes:
        step: Optimizer updates done when it was written.
        files: The `bytes` and `sha256` of each file by name.
        format: The version of the format.
    """

    step: int
    files: dict[str, dict[str, int | str]]
    format: int = FORMAT

    @classmethod
    def describing(cls, step: int, files: dict[str, bytes]) -> Manifest:
        """The manifest of files with this content."""
        return cls(step, {name: _digest(content) for name, content in files.items()})

    def encode(self) -> bytes:
        """The file. The same manifest always has the same bytes, so a changed byte is noticed."""
        return json.dumps({"format": self.format, "step": self.step, "files": self.files}, indent=2).encode()


def checkpoint_path(run_dir: str, step: int) -> str:
    """The path of the run's checkpoint of this step."""
    return storage.join(run_dir, "checkpoints", f"step-{step:08d}")


def list_checkpoints(run_dir: str) -> list[tuple[int, str]]:
    """(step, path) of the run's checkpoints, oldest first; their content is not checked."""
    entries = storage.list_dir(storage.join(run_dir, "checkpoints"))
    matches = ((_FOLDER.fullmatch(storage.name_of(entry.path)), entry.path) for entry in entries if not entry.is_file)
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def whole_checkpoints(run_dir: str) -> list[tuple[int, str]]:
    """The entries of `list_checkpoints` that were written completely; their bytes are not checked."""
    there = list_checkpoints(run_dir)
    if storage.local_path(run_dir) is not None:  # a local folder appears whole
        return there
    return [(step, path) for step, path in there if storage.exists(storage.join(path, MANIFEST))]


def write_folder(folder: str, step: int, files: dict[str, bytes]) -> None:
    """Write the files with their manifest; the checkpoint appears whole or not at all."""
    files = files | {MANIFEST: Manifest.describing(step, files).encode()}
    local = storage.local_path(folder)
    if local is None:  # an object store cannot rename folders: the manifest, which is put last, completes the checkpoint
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


def read_manifest(path: str) -> Manifest:
    """The manifest of the checkpoint at the path.

    Raises:
        BadCheckpointError: it is missing or damaged, or belongs to another step or to a format that this program cannot read.
    """
    written = _read(path, MANIFEST)
    try:
        tree = parse_json(written, MANIFEST)
        manifest = Manifest(tree["step"], dict(tree["files"]), tree["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadCheckpointError(f"{path}: {MANIFEST} cannot be read ({error}); it is damaged") from error
    if manifest.format not in FILES:
        raise BadCheckpointError(f"{path}: format {manifest.format!r}, this program reads format {', '.join(map(str, FILES))}")
    named = _FOLDER.fullmatch(storage.name_of(path))
    is_of_this_step = named is None or int(named.group(1)) == manifest.step
    if written != manifest.encode() or tuple(manifest.files) != FILES[manifest.format] or not is_of_this_step:
        raise _damaged(path, MANIFEST)
    return manifest


def read_file(path: str, name: str, manifest: Manifest) -> bytes:
    """One file of the checkpoint, checked against the manifest.

    Raises:
        BadCheckpointError: it is missing, or is not the file that was written.
    """
    content = _read(path, name)
    if manifest.files[name] != _digest(content):
        raise _damaged(path, name)
    return content


def state_of(path: str, content: bytes) -> dict[str, Any]:
    """The state in the content of state.pt.

    Raises:
        BadCheckpointError: it is not one, or would have to be unpickled.
    """
    import torch  # slow to import, and processes that make the stream need it for checkpoints of format 1 only

    with _sound(path, STATE):
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise BadCheckpointError(f"{path}: {STATE} holds more than tensors and plain values, and is not loaded") from error
        return dict(state)


def read_state_file(path: str) -> dict[str, Any]:
    """The state in a file that is a checkpoint by itself, such as that of a detector.

    Raises:
        BadCheckpointError: it is damaged, or would have to be unpickled.
    """
    import torch

    try:
        state = torch.load(io.BytesIO(storage.read_bytes(path)), map_location="cpu", weights_only=True)
        return dict(state)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise BadCheckpointError(f"{path} is damaged, or no checkpoint ({reason}). Delete it to start again.") from error


def read_seen(path: str) -> SeenIds:
    """The samples that the run had seen at the checkpoint, without reading the weights.

    The record and the manifest are checked byte by byte, the other files only for their size.

    Raises:
        BadCheckpointError: a file is missing, has another size, or is not the one that was written.
    """
    manifest = read_manifest(path)
    for name, stated in manifest.files.items():
        entry = storage.stat(storage.join(path, name))
        if entry is None:
            raise _incomplete(path, name)
        if entry.size_bytes != stated["bytes"]:
            raise _damaged(path, name)
    if SEEN in manifest.files:
        return seen_of(path, read_file(path, SEEN, manifest), {})
    return seen_of(path, None, state_of(path, read_file(path, STATE, manifest)))


def seen_of(path: str, content: bytes | None, state: dict[str, Any]) -> SeenIds:
    """The record of seen samples in the content of seen.json, or, in checkpoints of format 1, which have none, in the state.

    Raises:
        BadCheckpointError: it is not one.
    """
    with _sound(path, SEEN):
        return SeenIds.from_state_dict(state["seen"]) if content is None else SeenIds.decode(content)


def weights_of(path: str, content: bytes) -> dict[str, Any]:
    """The tensors of a checkpoint's weights.

    Raises:
        BadCheckpointError: they are not tensors.
    """
    import safetensors.torch

    with _sound(path, MODEL):
        return safetensors.torch.load(content)


@contextmanager
def _sound(path: str, name: str) -> Iterator[None]:
    """Within it a file is decoded that is the one that was written, whoever has written it.

    Raises:
        BadCheckpointError: it is not what its name says.
    """
    try:
        yield
    except BadCheckpointError:
        raise
    except Exception as error:  # torch, safetensors and zlib have a dozen kinds
        raise BadCheckpointError(f"{path}: {name} cannot be read ({type(error).__name__}: {error}); it is damaged") from error


def newest_seen(run_dir: str, refused: Collection[str] = ()) -> tuple[str, SeenIds] | None:
    """The newest checkpoint that `read_seen` accepts, and what the run had seen there; None for a run without checkpoints.

    Args:
        refused: Paths of checkpoints to skip, because their weights were found to be damaged.

    Raises:
        BadCheckpointError: there are checkpoints, and none of them can be used.
    """
    there = list_checkpoints(run_dir)
    for _, path in reversed(there):
        if path in refused:
            continue
        try:
            return path, read_seen(path)
        except BadCheckpointError as error:
            log_refused(error)
    if there:
        raise all_damaged(run_dir)
    return None


def all_damaged(run_dir: str) -> BadCheckpointError:
    """The error of a run whose checkpoints are all unusable."""
    return BadCheckpointError(
        f"every checkpoint of {run_dir} is damaged (the log says how), so the run cannot continue. Restore one, or start a new run in "
        "another --run-dir."
    )


def log_refused(error: BadCheckpointError) -> None:
    """Warn that a checkpoint is skipped."""
    log.warning("Refused a checkpoint, trying the one before it. %s", error)


def _digest(content: bytes) -> dict[str, int | str]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read(path: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(path, name))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _incomplete(path, name) from error
    except storage.StorageError:
        raise
    except UsageError as error:  # a folder, a pipe, a loop of links, or larger than the memory
        raise BadCheckpointError(f"{path} is not a whole checkpoint: {error}") from error


def _incomplete(path: str, name: str) -> BadCheckpointError:
    return BadCheckpointError(f"{path} is not a whole checkpoint: it has no {name}")


def _damaged(path: str, name: str) -> BadCheckpointError:
    return BadCheckpointError(f"{path}: {name} is not the file that was written (it does not agree with {MANIFEST}); it is damaged")
