"""Secrets for a job's environment, from this machine's environment or from a Kubernetes Secret."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from ray_sassl.process.errors import UsageError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PART = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_PATIENCE_S = 60


def read_secrets(sources: Sequence[str], env: Mapping[str, str]) -> dict[str, str]:
    """The variables by name.

    Args:
        sources: `NAME`, a variable of this process, or `secret/NAME` or `secret/NAMESPACE/NAME`, all keys of a Kubernetes Secret, which
            `kubectl` reads.
        env: The variables that the job has anyway.

    Raises:
        UsageError: a source does not exist, or a variable is given twice.
    """
    found: dict[str, str] = {}
    for source in sources:
        for name, value in _read(source):
            if name in found or name in env:
                raise UsageError(f"the variable {name} is given twice, the second time by --env-from-secret {source}")
            found[name] = value
    return found


def _read(source: str) -> Iterator[tuple[str, str]]:
    kind, *parts = source.split("/")
    if kind == "secret" and len(parts) in (1, 2) and all(map(_PART.fullmatch, parts)):
        yield from _of_kubernetes(*reversed(parts))
    elif not _VARIABLE.fullmatch(source):
        raise UsageError(
            f"--env-from-secret {source.partition('=')[0]!r} is neither the name of a variable, such as WANDB_API_KEY, nor of a Kubernetes "
            "Secret, such as secret/trackers or secret/NAMESPACE/trackers; it takes no value"
        )
    elif not os.environ.get(source):
        raise UsageError(f"--env-from-secret {source}: this variable is not set here; set it, or name a Kubernetes Secret (secret/NAME)")
    else:
        yield source, os.environ[source]


def _of_kubernetes(name: str, namespace: str | None = None) -> Iterator[tuple[str, str]]:
    command = ["kubectl", "get", "secret", name, *(["--namespace", namespace] if namespace else []), "--output=json"]
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_PATIENCE_S)
    except FileNotFoundError:
        raise UsageError(f"--env-from-secret secret/{name} needs kubectl, which is not on this machine") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"--env-from-secret secret/{name}: kubectl has not answered within {_PATIENCE_S} s") from None
    if ended.returncode != 0:
        raise UsageError(f"--env-from-secret secret/{name}: kubectl says {ended.stderr.strip() or 'nothing'}")
    for key, value in (json.loads(ended.stdout).get("data") or {}).items():
        if not _VARIABLE.fullmatch(key):
            raise UsageError(f"the Secret {name} has the key {key!r}, which cannot be the name of a variable")
        try:
            yield key, base64.b64decode(value, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise UsageError(f"the Secret {name} holds bytes under {key!r} and not a text, so it cannot be a variable") from None
