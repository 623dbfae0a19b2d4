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
from ray_sassl.files.safe_yaml import load_documents

LauncherSchema = Callable[[dict[str, Any]], list[Finding]]
"""Ray's own check of a launcher file."""


def check_text(text: str, source: str, ray_version: str, schemas: Schemas | None, launcher_schema: LauncherSchema) -> list[Finding]:
    """The findings of a launcher file or of Kubernetes manifests.

    Args:
        source: Name of the text, for messages.
        ray_version: The version that the cluster must run.
        schemas: KubeRay's schemas; None if they are not available.

    Raises:
        UsageError: the text is not valid YAML, or too large.
    """
    documents = load_documents(text, source)
    if not documents:
        return [Finding("", "is empty")]
    found = []
    for number, document in enumerate(documents):
        findings = _check(document, ray_version, schemas, launcher_schema)
        before = f"document {number + 1}: " if len(documents) > 1 else ""
        found += [replace(finding, where=f"{before}{finding.where}") for finding in findings]
    return found


def _check(document: Any, ray_version: str, schemas: Schemas | None, launcher_schema: LauncherSchema) -> list[Finding]:
    if not isinstance(document, dict):
        return [Finding("", f"is not a mapping of fields but a {type(document).__name__}")]
    if is_launcher(document):
        return [*launcher_schema(document), *check_launcher(document, ray_version)]
    if "kind" in document and "apiVersion" in document:
        return check_manifest(document, ray_version, schemas)
    return [Finding("", "is neither a file for `ray up` (cluster_name, provider) nor a Kubernetes manifest (apiVersion, kind)")]
