"""Checks of cluster definitions, including the installed Ray's own checks of launcher files."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import ray
from jsonschema import ValidationError

from ray_sassl.cluster.check import check_text
from ray_sassl.cluster.crds import read_schemas
from ray_sassl.cluster.findings import Finding
from ray_sassl.files.safe_yaml import MAX_BYTES
from ray_sassl.orchestrate.runtime.private import prepare_config, validate_config
from ray_sassl.process.errors import UsageError


def check_files(paths: list[str], crds: str | None, kuberay: str | None = None) -> dict[str, list[Finding]]:
    """The findings of each file.

    Args:
        crds: The folder of CRDs: KubeRay's, and those of other operators.
        kuberay: The version of the KubeRay operator, if it is known.

    Raises:
        UsageError: a file is missing, too large or not YAML; there are no CRDs in the folder; `kuberay` is not a version.
    """
    schemas = read_schemas(Path(crds)) if crds is not None else None
    return {path: check_text(read_definition(path), path, ray.__version__, schemas, rays_findings, kuberay) for path in paths}


def read_definition(path: str) -> str:
    """The file's text; its size is checked before it is read.

    Raises:
        UsageError: it is missing, too large for a definition, or not text.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"there is no file {path}")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise UsageError(f"{path} has {size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text: {error}") from error


def rays_findings(config: dict[str, Any]) -> list[Finding]:
    """The findings of Ray's schema and `ray up`, without connecting to a cloud."""
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path)
        return [Finding(where, f"Ray's schema: {error.message[:300]}")]
    except Exception as error:  # noqa: BLE001 - a malformed file can make Ray raise anything
        return [Finding("", f"Ray cannot read it: {type(error).__name__}: {error}")]
    return []
