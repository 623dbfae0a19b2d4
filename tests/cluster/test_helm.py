"""The values for KubeRay's chart `ray-cluster`: the chart has a place for each, and the RayCluster that comes of them passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ray_sassl.cluster.check import check_text
from ray_sassl.cluster.crds import Schemas

FILE = Path(__file__).parents[2] / "cluster/kuberay/helm-values.yaml"
BASE = FILE.parent / "base/raycluster.yaml"
# Names that the chart's templates read, as of August 2026.
TOP = {"annotations", "common", "fullnameOverride", "gcsFaultTolerance", "image", "imagePullSecrets", "nameOverride", "service"}
CONTAINER = {"args", "command", "envFrom", "lifecycle", "ports", "resources", "securityContext", "volumeMounts"}
POD = {
    "affinity", "dnsConfig", "initContainers", "nodeSelector", "priority", "priorityClassName", "resourceClaims", "restartPolicy",
    "runtimeClassName", "serviceAccountName", "tolerations", "topologySpreadConstraints", "volumes",
}  # fmt: skip
ANY = {*CONTAINER, *POD, "annotations", "containerEnv", "image", "labels", "podSecurityContext", "rayStartParams", "sidecarContainers"}
HEAD = {*ANY, "autoscalerOptions", "enableInTreeAutoscaling", "headService", "rayVersion"}
GROUP = {*ANY, "disabled", "maxReplicas", "minReplicas", "numOfHosts", "replicas"}


def _values() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def _groups(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {values["worker"]["groupName"]: values["worker"], **values["additionalWorkerGroups"]}


def _template(values: dict[str, Any], part: dict[str, Any], name: str) -> dict[str, Any]:
    container = {
        "name": name,
        "image": f"{values['image']['repository']}:{values['image']['tag']}",
        "env": [*values["common"]["containerEnv"], *part.get("containerEnv", [])],
        **{key: part[key] for key in CONTAINER & part.keys()},
    }
    pod = {"containers": [container], **{key: part[key] for key in POD & part.keys()}, "securityContext": part["podSecurityContext"]}
    return {"metadata": {key: part[key] for key in ("labels", "annotations") if key in part}, "spec": pod}


def _cluster(values: dict[str, Any]) -> dict[str, Any]:
    """What the chart makes of the values."""
    head = values["head"]
    groups = [
        {
            "groupName": name,
            **{key: group[key] for key in ("replicas", "minReplicas", "maxReplicas", "rayStartParams")},
            "template": _template(values, group, "ray-worker"),
        }
        for name, group in _groups(values).items()
    ]
    spec = {key: head[key] for key in ("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions")}
    spec["headGroupSpec"] = {"rayStartParams": head["rayStartParams"], "template": _template(values, head, "ray-head")}
    metadata = {"name": values["fullnameOverride"]}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": {**spec, "workerGroupSpecs": groups}}


def test_the_chart_has_a_place_for_every_value():
    values = _values()
    assert values.keys() <= {*TOP, "head", "worker", "additionalWorkerGroups"}
    assert values["image"].keys() <= {"repository", "tag", "pullPolicy"}
    assert values["common"].keys() == {"containerEnv"}
    assert values["head"].keys() <= HEAD
    assert values["worker"].keys() <= {*GROUP, "groupName"}
    for group in values["additionalWorkerGroups"].values():
        assert group.keys() <= GROUP


def test_the_cluster_of_the_values_passes_and_lacks_no_token(schemas: Schemas):
    assert check_text(yaml.safe_dump(_cluster(_values())), "the values", "2.60.0", schemas, lambda config: []) == []
    values = _values()
    values["common"]["containerEnv"] = values["common"]["containerEnv"][2:]
    (finding,) = check_text(yaml.safe_dump(_cluster(values)), "the values", "2.60.0", schemas, lambda config: [])
    assert "without token authentication" in finding.text


def test_its_pods_are_those_of_the_overlays_where_the_chart_allows_it():
    values, base = _values(), yaml.safe_load(BASE.read_text())["spec"]
    templates = {group["groupName"]: group["template"] for group in base["workerGroupSpecs"]} | {"head": base["headGroupSpec"]["template"]}
    for name, part in {"head": values["head"], **_groups(values)}.items():
        own, other = _template(values, part, "x"), templates[name]
        assert own["metadata"]["labels"] == other["metadata"]["labels"]
        for key in ("serviceAccountName", "securityContext", "volumes", "restartPolicy"):
            assert own["spec"][key] == other["spec"][key], (name, key)
        for key in ("resources", "securityContext", "ports", "volumeMounts"):
            assert own["spec"]["containers"][0][key] == other["spec"]["containers"][0][key], (name, key)
