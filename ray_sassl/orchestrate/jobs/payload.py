"""The code that is sent with a job: its files and their size, copied first so that exactly these files are sent."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ray_sassl.process import job_secrets
from ray_sassl.process.errors import UsageError

MAX_BYTES = 100 * 10**6
_SHOWN = 8

LEFT_OUT = (
    ".git", ".hg", ".svn", ".venv", "venv", "env", "node_modules", "__pycache__", "*.pyc", "*.pyo", "*.egg-info", "build", "dist",
    ".pytest_cache", ".ruff_cache", ".mypy_cache", ".hypothesis", ".ipynb_checkpoints", ".DS_Store", "runs", "wandb", "mlruns",
)  # fmt: skip
"""Names of files and folders that a job does not need; a Python package may have such a name."""
SECRET = (
    ".env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc",
    ".pypirc", ".npmrc",
    ".git-credentials", ".vault-token", ".aws", ".azure", ".ssh", ".ray", ".kube", "kubeconfig", "kubeconfig.*", "*.kubeconfig",
    ".huggingface",
    ".gnupg", ".docker", ".config", "credentials", "credentials.json", "application_default_credentials.json", "auth_token",
    "*service-account*.json", "*service_account*.json", job_secrets.FILE,
)  # fmt: skip
"""Names of files with secrets, in upper or lower case; they are not sent, even if they are under version control."""
_KEY_OF_ONES_OWN = re.compile(r"id_[^.]+")


@dataclass(frozen=True)
class Payload:
    """Files of a folder.

    Attributes:
        folder: The folder.
        files: Paths within it, sorted.
        num_bytes: Size of all of them.
        secrets: Files that were left out because of their names.
    """

    folder: Path
    files: tuple[str, ...]
    num_bytes: int
    secrets: tuple[str, ...]


def select_files(folder: Path, max_bytes: int = MAX_BYTES) -> Payload:
    """The folder's files to send: in a Git repository those that it does not ignore, else all; without `LEFT_OUT` and `SECRET`.

    Raises:
        UsageError: the folder does not exist, or the files are larger than `max_bytes` in total; the message names the largest.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} to send with the job; give another --working-dir")
    chosen: dict[str, int] = {}
    secrets = []
    total = 0
    for name in _candidates(folder):
        path = folder / name
        if _is_secret(name):
            secrets.append(name)
        elif (
            path.is_file()
            and not path.is_symlink()
            and not any(_is_left_out(folder / part) for part in [Path(name), *Path(name).parents[:-1]])
        ):
            chosen[name] = path.stat().st_size
            total += chosen[name]
    if total > max_bytes:
        largest = sorted(chosen.items(), key=lambda item: -item[1])[:_SHOWN]
        named = "\n".join(f"  {size / 1e6:,.1f} MB  {name}" for name, size in largest)
        raise UsageError(
            f"{folder} has {total / 1e6:,.0f} MB in {len(chosen):,} files; at most {max_bytes / 1e6:,.0f} MB are sent with a job. The "
            f"largest:\n"
            f"{named}\nLet Git ignore what the job does not need, give a smaller --working-dir, or raise --max-upload-mb. Data belong in "
            f"object storage."
        )
    return Payload(folder, tuple(sorted(chosen)), total, tuple(sorted(secrets)))


def stage(payload: Payload, target: Path) -> Path:
    """Copy the payload's files to the folder; returns it."""
    target.mkdir(parents=True)
    for name in payload.files:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(payload.folder / name, path)
    return target


def _is_left_out(path: Path) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in LEFT_OUT) and not (path / "__init__.py").is_file()


def _is_secret(name: str) -> bool:
    """Whether the file's name, or that of a parent folder, is one of secrets; public keys are not, and names such as `id_work` are."""
    *folders, file = Path(name.lower()).parts
    if _KEY_OF_ONES_OWN.fullmatch(file):
        return True
    parts = folders if file.endswith(".pub") else [*folders, file]
    return any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in SECRET)


def _candidates(folder: Path) -> list[str]:
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git"):
        found = subprocess.run(command, capture_output=True, check=False)
        if found.returncode == 0 and found.stdout:  # no output: the folder itself is ignored, like a virtual environment
            return [os.fsdecode(name) for name in found.stdout.split(b"\0") if name]
    names = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _is_left_out(Path(root, name))]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in files]
    return names
