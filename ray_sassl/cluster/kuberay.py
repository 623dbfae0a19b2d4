"""Problems of Kubernetes manifests of Ray clusters that KubeRay's schemas do not find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ray_sassl.cluster.crds import Schemas, schema_findings
from ray_sassl.cluster.findings import Finding, at, is_whole, mapping, sequence
from ray_sassl.cluster.groups import (
    JOBS,
    SPECS,
    amount,
    cluster_groups,
    is_labeled_for_gpus,
    is_named_for_gpus,
    ray_cluster_spec,
    ray_containers,
)
from ray_sassl.cluster.images import check_image
from ray_sassl.cluster.others import KUEUE_QUEUE, OUTSIDE, other_kinds
from ray_sassl.cluster.releases import needs, parsed
from ray_sassl.cluster.secrets import secrets_in
from ray_sassl.cluster.sizes import check_sizes

_GPU = "nvidia.com/gpu"
_FIRST_WITH_TOKENS = (2, 52)
_ELASTIC = "kueue.x-k8s.io/elastic-job"


def check_manifest(manifest: dict[str, Any], ray_version: str, schemas: Schemas | None, kuberay: str | None = None) -> list[Finding]:
    """The findings of one manifest; for kinds that are not Ray's, only their fields, if a CRD has them, and what endangers a Ray cluster.

    Args:
        ray_version: The version that images and `rayVersion` must have.
        schemas: Schemas from the CRDs; without them a note says that the fields were not checked.
        kuberay: The version of the operator that will get the manifest, if it is known.

    Raises:
        UsageError: `kuberay` is not a version.
    """
    kind, version = manifest.get("kind"), manifest.get("apiVersion")
    found = [*_named(manifest), *secrets_in(manifest)]
    schema = (schemas or {}).get((str(version), str(kind)))
    if not str(version).startswith("ray.io/"):
        return [*found, *(schema_findings(manifest, schema) if schema else []), *other_kinds(manifest)]
    needed = needs(manifest)
    if kuberay is not None:
        found += [
            Finding("" if where == kind else where, f"KubeRay {first} is the first that knows it, and yours is {kuberay}")
            for where, first in needed.items()
            if parsed(first) > parsed(kuberay)
        ]
    if schemas is None:
        found.append(Finding("", "field names were not checked; give the folder of KubeRay's CRDs with --crds", is_note=True))
    elif schema is None:
        known = ", ".join(f"{kind} of {version}" for version, kind in sorted(schemas))
        first = f", which KubeRay {needed[str(kind)]} is the first to know" if str(kind) in needed else ""
        found.append(Finding("apiVersion", f"the CRDs have no {kind} of {version}{first}; they have {known}"))
    else:
        for finding in schema_findings(manifest, schema):
            first = f"; KubeRay {needed[finding.where]} is the first that knows it" if finding.where in needed else ""
            found.append(replace(finding, text=f"{finding.text}{first}"))
    found += _cron(manifest)
    prefix, spec = SPECS.get(str(kind), ""), ray_cluster_spec(manifest)
    if not spec:
        return found  # a job on an existing cluster (clusterSelector), or a problem that the schema has found
    found += [
        *_retries(manifest, spec),
        *_authentication(spec, prefix),
        *_autoscaling(manifest, spec, prefix),
        *_groups(spec, prefix, ray_version),
    ]
    if (declared := spec.get("rayVersion")) is None:
        found.append(Finding(f"{prefix}.rayVersion", f"is missing; KubeRay chooses features by it: give {ray_version!r}"))
    elif declared != ray_version:
        found.append(Finding(f"{prefix}.rayVersion", f"is {declared}, and Ray {ray_version} is installed here; all must be the same"))
    return found


def _named(manifest: dict[str, Any]) -> Iterator[Finding]:
    if manifest.get("kind") in ("Kustomization", "Component"):
        return
    if not isinstance(at(manifest, "metadata.name"), str) and not isinstance(at(manifest, "metadata.generateName"), str):
        yield Finding("metadata.name", "is missing")


def _cron(manifest: dict[str, Any]) -> Iterator[Finding]:
    if manifest.get("kind") != "RayCronJob":
        return
    if at(manifest, "spec.jobTemplate.activeDeadlineSeconds") is None:
        yield Finding(
            "spec.jobTemplate.activeDeadlineSeconds",
            "is missing: the operator starts a run although the last one has not ended, so that both rent machines",
        )
    if KUEUE_QUEUE in mapping(at(manifest, "metadata.labels")):
        yield Finding(
            "metadata.labels", f"{KUEUE_QUEUE} has no effect: the operator gives the runs no labels, so Kueue does not queue them"
        )


def _authentication(spec: dict[str, Any], prefix: str) -> Iterator[Finding]:
    mode = at(spec, "authOptions.mode")
    version = tuple(int(part) for part in str(spec.get("rayVersion")).split(".")[:2] if part.isdigit())
    if mode == "token":
        if version and version < _FIRST_WITH_TOKENS:
            yield Finding(f"{prefix}.authOptions", f"Ray {spec['rayVersion']} knows no tokens; 2.52 is the first that does")
        return
    if mode != "disabled" and all(_has_own_token(group) for _, group in _group_items(spec, prefix)):
        return
    given = f"is {mode}" if mode else "is missing"
    yield Finding(
        f"{prefix}.authOptions.mode",
        f"{given}: without token authentication whoever reaches the head runs code; set authOptions: {{mode: token}}",
    )


def _retries(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Finding]:
    path = f"{JOBS.get(str(manifest.get('kind')), '')}.backoffLimit"
    tries = at(manifest, path)
    if is_whole(tries) and tries > 0 and any(group.gpus for group in cluster_groups(spec)):
        yield Finding(
            path,
            f"{tries}: each new try rents all machines again, also for a mistake in the command; give 0 and create the job again",
        )


def _has_own_token(group: dict[str, Any]) -> bool:
    for container in ray_containers(group):
        env = {str(mapping(item).get("name")): mapping(item) for item in sequence(container.get("env"))}
        has_mode = env.get("RAY_AUTH_MODE", {}).get("value") == "token"
        if has_mode and ("valueFrom" in env.get("RAY_AUTH_TOKEN", {}) or "RAY_AUTH_TOKEN_PATH" in env):
            return True
    return False


def _autoscaling(manifest: dict[str, Any], spec: dict[str, Any], prefix: str) -> Iterator[Finding]:
    is_on = spec.get("enableInTreeAutoscaling") is True
    is_v2 = at(spec, "autoscalerOptions.version") == "v2"
    if is_on and KUEUE_QUEUE in mapping(at(manifest, "metadata.labels")) and _ELASTIC not in mapping(at(manifest, "metadata.annotations")):
        yield Finding(
            f"{prefix}.enableInTreeAutoscaling",
            f"Kueue ({KUEUE_QUEUE}) admits clusters of a fixed size; turn autoscaling off, or annotate {_ELASTIC} if your Kueue has "
            "elastic jobs",
        )
    if is_on and not is_v2:
        yield Finding(f"{prefix}.autoscalerOptions.version", "is not v2; only v2 uses idleTimeoutSeconds of a group", is_note=True)
    for where, group in _group_items(spec, prefix):
        if is_on and is_v2 and at(group, "template.spec.restartPolicy") not in (None, "Never"):
            yield Finding(f"{where}.template.spec.restartPolicy", "must be Never with autoscaler v2, where each pod is a node")
        if group.get("idleTimeoutSeconds") is not None and not (is_on and is_v2):
            yield Finding(f"{where}.idleTimeoutSeconds", "has no effect without enableInTreeAutoscaling and autoscalerOptions.version: v2")


def _groups(spec: dict[str, Any], prefix: str, ray_version: str) -> Iterator[Finding]:
    is_growing = spec.get("enableInTreeAutoscaling") is True
    names: set[str] = set()
    for where, group in _group_items(spec, prefix):
        name = str(group.get("groupName", "head"))
        if name in names:
            yield Finding(f"{where}.groupName", f"there are two groups called {name!r}")
        names.add(name)
        for container in ray_containers(group):
            if image := container.get("image"):
                yield from check_image(str(image), f"{where}.template.spec.containers[0].image", ray_version)
            else:
                yield Finding(f"{where}.template.spec.containers[0].image", "is missing")
        yield from _gpus(where, name, group)
        yield from check_sizes(where, group)
        yield from _kept(where, group)
        yield from _selected(where, group)
        yield from _labeled(where, group)
        yield from _grace(where, group)
        if "groupName" in group:
            yield from _replicas(where, group, is_growing)
    head = mapping(spec.get("headGroupSpec"))
    if str(at(head, "rayStartParams.num-cpus")) != "0":
        where = f"{prefix}.headGroupSpec.rayStartParams"
        yield Finding(where, 'the head runs tasks, which may starve or kill it and the whole cluster; give it num-cpus: "0"', is_note=True)
    for where in ("serviceType", "headService.spec.type"):
        if at(head, where) in OUTSIDE:
            yield Finding(f"{prefix}.headGroupSpec.{where}", f"{at(head, where)} opens the head to outside the cluster; use ClusterIP")


_STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
_NAME = "app.kubernetes.io/name"
_DRAIN, _RAYS_DRAIN_S, _KUBERNETES_GRACE_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", 30.0, 30


def _kept(where: str, group: dict[str, Any]) -> Iterator[Finding]:
    """A cluster's own packing of nodes must not end the head, nor all training workers at once."""
    if "groupName" in group and at(group, "labels.ray-sassl/group") != "train":
        return
    found = mapping(at(group, "template.metadata.annotations"))
    for name, value in _STAYS.items():
        if found.get(name) != value:
            yield Finding(
                f"{where}.template.metadata.annotations", f'lacks {name}: "{value}", so a cluster that packs its nodes moves the pod'
            )


def _grace(where: str, group: dict[str, Any]) -> Iterator[Finding]:
    """After SIGTERM Ray drains the node for a time before it ends, in which a run writes a checkpoint."""
    given = at(group, "template.spec.terminationGracePeriodSeconds")
    grace_s = given if is_whole(given) else _KUBERNETES_GRACE_S
    for container in ray_containers(group):
        env = {mapping(item).get("name"): mapping(item).get("value") for item in sequence(container.get("env"))}
        drain_s = amount(env.get(_DRAIN)) if _DRAIN in env else _RAYS_DRAIN_S
        if drain_s is not None and grace_s <= drain_s:
            yield Finding(
                f"{where}.template.spec.terminationGracePeriodSeconds",
                f"the pod is killed after {grace_s} s, and Ray drains its node for {drain_s:g} s first; give 60, or a smaller {_DRAIN}",
            )


def _selected(where: str, group: dict[str, Any]) -> Iterator[Finding]:
    if mapping(at(group, "template.metadata.labels")).get(_NAME) is not None:
        yield Finding(
            f"{where}.template.metadata.labels",
            f"{_NAME} is the operator's own label, by which its services find the pods; use a label of your own",
        )


def _labeled(where: str, group: dict[str, Any]) -> Iterator[Finding]:
    if at(group, "rayStartParams.labels") is not None:
        yield Finding(f"{where}.rayStartParams.labels", "the operator refuses labels here; give them as labels of the group")


def _replicas(where: str, group: dict[str, Any], is_growing: bool) -> Iterator[Finding]:
    numbers = {name: group.get(name) for name in ("minReplicas", "maxReplicas", "replicas", "numOfHosts", "idleTimeoutSeconds")}
    for name, value in numbers.items():
        if is_whole(value) and value < 0:
            yield Finding(f"{where}.{name}", f"{value} is negative")
    low, high, now = numbers["minReplicas"], numbers["maxReplicas"], numbers["replicas"]
    if is_whole(low) and is_whole(high) and low > high:
        yield Finding(f"{where}.maxReplicas", f"there may be at most {high} and must be at least {low} (minReplicas)")
    elif is_whole(now) and is_whole(low) and is_whole(high) and not low <= now <= high:
        yield Finding(f"{where}.replicas", f"{now} is not between minReplicas ({low}) and maxReplicas ({high})")
    if not is_growing and not now and high:
        yield Finding(f"{where}.replicas", "is 0 and autoscaling is off, so there will never be such a node; set replicas")


def _gpus(where: str, name: str, group: dict[str, Any]) -> Iterator[Finding]:
    started = at(group, "rayStartParams.num-gpus")
    for container in ray_containers(group):
        limit = mapping(at(container, "resources.limits")).get(_GPU)
        tolerates = any(mapping(item).get("key") == _GPU for item in sequence(at(group, "template.spec.tolerations")))
        expects = tolerates or started not in (None, "0", 0) or is_labeled_for_gpus(group)
        if not limit and (expects or is_named_for_gpus(name)):
            why = "the group is for GPUs" if expects else "the group's name says that it is for GPUs"
            limits = f"{where}.template.spec.containers[0].resources.limits"
            yield Finding(limits, f"{why} and asks for none; add {_GPU}", is_note=not expects)
        elif limit and started is not None and str(started) != str(limit):
            yield Finding(f"{where}.rayStartParams.num-gpus", f"is {started}, and the pod has {limit} GPUs")


def _group_items(spec: dict[str, Any], prefix: str) -> list[tuple[str, dict[str, Any]]]:
    head = [(f"{prefix}.headGroupSpec", mapping(spec.get("headGroupSpec")))] if "headGroupSpec" in spec else []
    workers = sequence(spec.get("workerGroupSpecs"))
    return [*head, *((f"{prefix}.workerGroupSpecs[{number}]", mapping(group)) for number, group in enumerate(workers))]
