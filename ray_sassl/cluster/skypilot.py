"""Problems of a SkyPilot task: fields that SkyPilot does not have, open ports, secrets in the file, and a Ray that would not work.

The fields are those of SkyPilot's "YAML spec" page and of its `sky/utils/schemas.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from ray_sassl.cluster.findings import Finding, is_whole, mapping, sequence
from ray_sassl.cluster.images import check_image
from ray_sassl.cluster.secrets import secrets_in
from ray_sassl.plugins import did_you_mean

_TASK = {
    "name": str, "workdir": (str, dict), "num_nodes": int, "resources": dict, "envs": dict, "secrets": dict, "file_mounts": dict,
    "volumes": dict, "setup": str, "run": str, "config": dict, "service": dict, "experimental": dict,
}  # fmt: skip
_RESOURCES = {
    "infra": str, "cloud": str, "region": str, "zone": str, "accelerators": (str, dict, list), "accelerator_args": dict,
    "cpus": (str, int, float), "memory": (str, int, float), "instance_type": str, "use_spot": bool, "disk_size": (int, str),
    "disk_tier": str, "network_tier": str, "local_disk": str, "max_hourly_cost": (int, float), "ports": (int, str, list), "labels": dict,
    "image_id": (str, dict), "autostop": (bool, int, str, dict), "job_recovery": (str, dict), "volumes": list, "priority": int,
    "any_of": list, "ordered": list,
}  # fmt: skip
_DISK_GB = 100


def is_skypilot(document: Any) -> bool:
    """Whether the document is a task of SkyPilot."""
    keys = mapping(document).keys()
    return bool({"run", "resources"} & keys) and not {"kind", "apiVersion", "provider", "cluster_name"} & keys


def check_skypilot(task: dict[str, Any], ray_version: str) -> list[Finding]:
    """The findings, in the order of the file.

    Args:
        ray_version: The version that the image must have.
    """
    wishes = mapping(task.get("resources"))
    found = [*_fields(task, _TASK, ""), *_fields(wishes, _RESOURCES, "resources.")]
    for name in ("any_of", "ordered"):
        for number, one in enumerate(sequence(wishes.get(name))):
            found += _fields(mapping(one), _RESOURCES, f"resources.{name}[{number}].")
    return [*found, *_machines(wishes, ray_version), *_ray(str(task.get("run") or "")), *_secrets(task)]


def _fields(tree: dict[str, Any], known: dict[str, Any], where: str) -> Iterator[Finding]:
    for name, value in tree.items():
        if name not in known:
            yield Finding(f"{where}{name}", f"SkyPilot has no such field{did_you_mean(str(name), list(known))}")
        elif value is not None and (not isinstance(value, known[name]) or (isinstance(value, bool) and not _takes_bools(known[name]))):
            yield Finding(f"{where}{name}", f"{value!r} has a type that SkyPilot does not take here")


def _takes_bools(types: Any) -> bool:
    return bool in (types if isinstance(types, Iterable) else (types,))


def _machines(wishes: dict[str, Any], ray_version: str) -> Iterator[Finding]:
    if wishes.get("ports") is not None:
        yield Finding("resources.ports", "SkyPilot opens these ports to the whole Internet; reach the dashboard by SSH instead")
    images = wishes.get("image_id")
    for image in images.values() if isinstance(images, dict) else [images]:
        if str(image).startswith("docker:"):
            yield from check_image(str(image).removeprefix("docker:"), "resources.image_id", ray_version)
        else:
            yield Finding(
                "resources.image_id", "names no container (docker:IMAGE), so nothing says which Ray and which torch are used", True
            )
    size = wishes.get("disk_size")
    if is_whole(size) and size < _DISK_GB:
        yield Finding("resources.disk_size", f"{size} GB are too few for the image and spilled blocks; give {_DISK_GB} or more")
    if wishes.get("use_spot") and not wishes.get("job_recovery"):
        yield Finding("resources.job_recovery", "is missing: say what becomes of the job when its spot machines are taken away", True)


def _ray(run: str) -> Iterator[Finding]:
    commands = re.sub(r"#.*", "", run)
    if re.search(r"\bray\s+stop\b", commands):
        yield Finding("run", "`ray stop` ends SkyPilot's own Ray too; end the processes that this script has started")
    if re.search(r"\bray\s+start\b", commands) and not re.search(r"\bRAY_AUTH_MODE=['\"]?token\b", commands):
        yield Finding("run", "Ray starts without token authentication, so whoever reaches it runs code there; export RAY_AUTH_MODE=token")
    if re.search(r"--dashboard-host[=\s]+['\"]?(0\.0\.0\.0|\[?::)", commands):
        yield Finding("run", "the dashboard and the job API listen on every interface; leave them on 127.0.0.1")


def _secrets(task: dict[str, Any]) -> Iterator[Finding]:
    for name, value in mapping(task.get("secrets")).items():
        if value is not None:
            yield Finding(f"secrets.{name}", "has its value in the file; give null, and the value by --secret")
    yield from secrets_in({name: value for name, value in task.items() if name not in ("secrets", "envs")})
    envs = mapping(task.get("envs"))
    yield from secrets_in([{"name": str(name), "value": value} for name, value in envs.items() if isinstance(value, str)], "envs")
