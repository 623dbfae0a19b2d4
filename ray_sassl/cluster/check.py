"""The check of a cluster definition file of any kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ray_sassl.cluster.crds import Schemas
from ray_sassl.cluster.findings import Finding
from ray_sassl.cluster.groups import is_launcher
from ray_sassl.cluster.kuberay import check_manifest
from ray_sassl.cluster.launcher import check_launcher
from ray_sassl.cluster.releases import gates, needs, newest
from ray_sassl.cluster.skypilot import check_skypilot, is_skypilot
from ray_sassl.cluster.together import check_together
from ray_sassl.files.safe_yaml import load_documents

LauncherSchema = Callable[[dict[str, Any]], list[Finding]]
"""Ray's own check of a launcher file."""


LAUNCHER_RULES = (
    "the file as the installed Ray reads it",
    "numbers of nodes: bounds, signs, sums",
    "GPUs and CPUs of each group against its type of machine",
    "images: the same Ray everywhere, and one that the autoscaler finds",
    "machines on AWS and Google Cloud: an image, a network and a disk of their own, and the NVIDIA driver for torch's CUDA",
    "images of private registries: a login before they are pulled",
    "spot machines: whether Ray is told of the cloud's notice; whether an idle head ends",
    "setup commands of Ray that would change the image",
    "token authentication, open ports, secrets",
)
CLUSTER_RULES = (
    "memory, CPUs and GPUs of each pod against what its machine leaves to it",
    "/dev/shm against Ray's object store, ephemeral storage against the image and spilled blocks",
    "replicas: bounds, signs, fixed sizes; autoscaling and Kueue",
    "images: the same Ray in all pods",
    "the head and training workers: not moved to pack nodes; time to end in order",
    "labels that the operator needs, tries that rent the machines again",
    "token authentication, services open to outside, secrets",
)
SKYPILOT_RULES = (
    "fields and their types against SkyPilot's",
    "the container: the same Ray; disks, open ports",
    "Ray: token authentication, and nothing that ends SkyPilot's own",
    "secrets given by value",
)
OTHER_RULES = (
    "names, secrets, policies that let everybody in, services open to outside, budgets that protect nothing, pools that move pods",
)
TOGETHER_RULES = (
    "jobs against the quotas of their queue, pods against all machines of their pool",
    "ports of metrics against what collects them and who may reach them",
)


def rules_of(text: str, source: str, *, has_schemas: bool) -> list[str]:
    """What `check_text` looks at in these documents, each once.

    Args:
        has_schemas: Whether KubeRay's schemas are there.

    Raises:
        UsageError: as for `check_text`.
    """
    rules: list[str] = []
    documents = load_documents(text, source)
    for document in documents:
        if isinstance(document, dict) and is_launcher(document):
            rules += LAUNCHER_RULES
        elif is_skypilot(document):
            rules += SKYPILOT_RULES
        elif isinstance(document, dict) and str(document.get("apiVersion")).startswith("ray.io/"):
            rules += [*(["every field against KubeRay's schemas"] if has_schemas else []), *CLUSTER_RULES, *_operator(document)]
        else:
            rules += OTHER_RULES
    return list(dict.fromkeys([*rules, *(TOGETHER_RULES if len(documents) > 1 else ())]))


def _operator(document: dict[str, Any]) -> list[str]:
    needed = needs(document)
    if (version := newest(needed)) is None:
        return []
    with_gates = f" with --feature-gates={','.join(f'{gate}=true' for gate in gates(needed))}" if gates(needed) else ""
    return [f"which KubeRay it needs: {version} or newer{with_gates}, for {', '.join(path for path in needed if needed[path] == version)}"]


def check_text(
    text: str, source: str, ray_version: str, schemas: Schemas | None, launcher_schema: LauncherSchema, kuberay: str | None = None
) -> list[Finding]:
    """The findings of a launcher file or of Kubernetes manifests.

    Args:
        source: Name of the text, for messages.
        ray_version: The version that the cluster must run.
        schemas: KubeRay's schemas, and those of other operators; None if they are not available.
        kuberay: The version of the KubeRay operator, if it is known.

    Raises:
        UsageError: the text is not valid YAML, or too large; `kuberay` is not a version.
    """
    documents = load_documents(text, source)
    if not documents:
        return [Finding("", "is empty")]
    found = [
        (number, finding)
        for number, document in enumerate(documents)
        for finding in _check(document, ray_version, schemas, launcher_schema, kuberay)
    ]
    if len(documents) == 1:
        return [finding for _, finding in found]
    found += check_together(documents)
    return [
        replace(finding, where=f"document {number + 1}: {finding.where}") for number, finding in sorted(found, key=lambda item: item[0])
    ]


def _check(document: Any, ray_version: str, schemas: Schemas | None, launcher_schema: LauncherSchema, kuberay: str | None) -> list[Finding]:
    if not isinstance(document, dict):
        return [Finding("", f"is not a mapping of fields but a {type(document).__name__}")]
    if is_launcher(document):
        return [*launcher_schema(document), *check_launcher(document, ray_version)]
    if is_skypilot(document):
        return check_skypilot(document, ray_version)
    if "kind" in document and "apiVersion" in document:
        return check_manifest(document, ray_version, schemas, kuberay)
    kinds = "for `ray up` (cluster_name, provider) nor a task of SkyPilot (resources, run) nor a Kubernetes manifest (apiVersion, kind)"
    return [Finding("", f"is neither a file {kinds}")]
