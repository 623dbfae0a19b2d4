"""The oldest KubeRay operator that knows all fields of a manifest.

An older one's API server drops what it does not know, so `authOptions` would be gone without a word. The versions are those of KubeRay's
releases (ray-operator/config/crd/bases, v1.0.0 to v1.7.0) in whose CRDs a field first is.
"""

from __future__ import annotations

import re
from typing import Any

from ray_sassl.cluster.findings import at, mapping, sequence
from ray_sassl.cluster.groups import JOBS, SPECS
from ray_sassl.process.errors import UsageError

_KINDS = {"RayCronJob": "1.6.0"}
_JOB = {
    "activeDeadlineSeconds": "1.1.0",
    "submissionMode": "1.1.0",
    "backoffLimit": "1.2.0",
    "submitterConfig": "1.2.0",
    "managedBy": "1.3.0",
    "deletionStrategy": "1.5.0",
    "preRunningDeadlineSeconds": "1.6.0",
}
_CLUSTER = {
    "suspend": "1.1.0",
    "gcsFaultToleranceOptions": "1.3.0",
    "managedBy": "1.3.0",
    "autoscalerOptions.version": "1.4.0",
    "authOptions": "1.5.1",
    "authOptions.secretName": "1.6.0",
    "authOptions.enableK8sTokenAuth": "1.6.0",
    "upgradeStrategy": "1.6.0",
    "gcsFaultToleranceOptions.backend": "1.7.0",
    "historyServerOptions": "1.7.0",
    "networkPolicy": "1.7.0",
    "tlsOptions": "1.7.0",
}
_GROUP = {
    "numOfHosts": "1.1.0",
    "idleTimeoutSeconds": "1.3.0",
    "suspend": "1.3.0",
    "labels": "1.5.0",
    "resources": "1.5.0",
    "ingressOptions": "1.7.0",
    "priority": "1.7.0",
}
_GATES = {
    "RayCronJob": "RayCronJob",
    "historyServerOptions": "RayClusterHistoryServer",
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
}
"""Features that are off in the operator until they are asked for, as of KubeRay 1.7."""


def needs(manifest: dict[str, Any]) -> dict[str, str]:
    """The first KubeRay that knows it, for each part of the manifest that the oldest did not know."""
    kind = str(manifest.get("kind"))
    found = {kind: _KINDS[kind]} if kind in _KINDS else {}
    if kind in JOBS:
        found |= _first(at(manifest, JOBS[kind]), _JOB, f"{JOBS[kind]}.")
    if kind in SPECS:
        spec, prefix = mapping(at(manifest, SPECS[kind])), f"{SPECS[kind]}."
        found |= _first(spec, _CLUSTER, prefix) | _first(spec.get("headGroupSpec"), _GROUP, f"{prefix}headGroupSpec.")
        for number, group in enumerate(sequence(spec.get("workerGroupSpecs"))):
            found |= _first(group, _GROUP, f"{prefix}workerGroupSpecs[{number}].")
    return found


def newest(needed: dict[str, str]) -> str | None:
    """The newest of the versions, which is the oldest operator that will do; None for none."""
    return max(needed.values(), key=parsed, default=None)


def gates(needed: dict[str, str]) -> list[str]:
    """The operator's feature gates that must be switched on for what is needed."""
    return list(dict.fromkeys(_GATES[name] for path in needed if (name := path.rpartition(".")[2]) in _GATES))


def parsed(version: str) -> tuple[int, ...]:
    """The numbers of `1.5.1` or `v1.5.1`.

    Raises:
        UsageError: it is not such a version.
    """
    if (match := re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:-.*)?", version)) is None:
        raise UsageError(f"{version!r} is not a version of KubeRay, such as 1.5.1")
    return tuple(int(number or 0) for number in match.groups())


def _first(tree: Any, table: dict[str, str], prefix: str) -> dict[str, str]:
    return {f"{prefix}{path}": version for path, version in table.items() if at(tree, path) is not None}
