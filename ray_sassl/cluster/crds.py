"""Strict JSON schemas from Kubernetes' custom resource definitions.

The API server silently prunes unknown fields, so a misspelled one has no effect. Here it is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema

from ray_sassl.cluster.findings import Finding, mapping, sequence
from ray_sassl.files import storage
from ray_sassl.files.safe_yaml import load_documents
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError

_MAX_BYTES, _MAX_NODES = 1 << 23, 2_000_000
_KEPT = (
    "type",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
    "multipleOf",
)

Schemas = dict[tuple[str, str], dict[str, Any]]
"""Schemas by apiVersion and kind."""


def read_schemas(folder: Path) -> Schemas:
    """The schemas of every served version in the folder's CRD files, or lists of CRDs, whoever's they are.

    Raises:
        UsageError: the folder does not exist, or none of its files is a CRD.
    """
    schemas: Schemas = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]) if folder.is_dir() else []:
        for document in load_documents(storage.read_text(path, _MAX_BYTES), str(path), max_bytes=_MAX_BYTES, max_nodes=_MAX_NODES):
            for definition in [document, *sequence(mapping(document).get("items"))]:
                if mapping(definition).get("kind") == "CustomResourceDefinition":
                    schemas |= schemas_of(definition)
    if not schemas:
        raise UsageError(
            f"{folder} is not a folder with CustomResourceDefinitions; KubeRay's are in its repository under "
            "ray-operator/config/crd/bases, and `kubectl get crd -o yaml` writes those of a cluster"
        )
    return schemas


def schemas_of(definition: dict[str, Any]) -> Schemas:
    """The schema of each version that the definition serves."""
    spec = definition["spec"]
    group, kind = spec["group"], spec["names"]["kind"]
    return {
        (f"{group}/{version['name']}", kind): {
            "$schema": "http://json-schema.org/draft-07/schema#",
            **strict(version["schema"]["openAPIV3Schema"]),
        }
        for version in spec["versions"]
        if version.get("served", True)
    }


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a structural schema: it refuses unknown fields, and does not require fields that have a default."""
    made: dict[str, Any] = {name: schema[name] for name in _KEPT if name in schema}
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in made:
        made["type"] = [*([made["type"]] if isinstance(made["type"], str) else made["type"]), "null"]
    for name in ("anyOf", "allOf", "oneOf"):
        if name in schema and not schema.get("x-kubernetes-int-or-string"):
            made[name] = [strict(part) | {"additionalProperties": True} for part in schema[name]]
    if "items" in schema:
        made["items"] = strict(schema["items"])
    properties = {name: strict(child) for name, child in schema.get("properties", {}).items()}
    if properties:
        made["properties"] = properties
        with_default = {name for name, child in schema["properties"].items() if "default" in child}
        if required := [name for name in schema.get("required", []) if name not in with_default]:
            made["required"] = required
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        made["additionalProperties"] = strict(more)
    elif properties and not more and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made["additionalProperties"] = False
    return made


def schema_findings(manifest: dict[str, Any], schema: dict[str, Any]) -> list[Finding]:
    """What the schema does not allow in the manifest."""
    validator = jsonschema.Draft7Validator(schema)
    found = []
    for error in sorted(validator.iter_errors(manifest), key=lambda error: [str(part) for part in error.absolute_path]):
        where = _path(error.absolute_path)
        if error.validator == "additionalProperties":
            known = mapping(mapping(error.schema).get("properties"))
            for name in mapping(error.instance):
                if name not in known:
                    found.append(Finding(f"{where}.{name}".lstrip("."), f"there is no such field{did_you_mean(str(name), known)}"))
        else:
            found.append(Finding(where, error.message if len(error.message) < 300 else f"{error.message[:300]}..."))
    return found


def _path(parts: Any) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
