"""What is applied together must fit together; each broken copy of the shipped files fails for its reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.together import check_together

KUBERAY = Path(__file__).parents[2] / "cluster/kuberay"
QUEUE, JOB = "kueue/queue.yaml", "job/rayjob.yaml"
POOLS, CLUSTER = "karpenter/nodepools.yaml", "base/raycluster.yaml"
GROUPS = ("head", "decode", "stylize", "train")
Manifests = dict[str, Any]


def _read(*names: str) -> list[Manifests]:
    """The manifests of the files; groups of Ray clusters select nodes by their own label, as karpenter makes them."""
    found = [manifest for name in names for manifest in yaml.safe_load_all((KUBERAY / name).read_text())]
    for manifest in found:
        for group, template in zip(GROUPS, _templates(manifest), strict=False):
            template["spec"]["nodeSelector"] = {"ray-sassl/group": group}
    return found


def _templates(manifest: Manifests) -> list[Manifests]:
    if manifest["kind"] not in ("RayCluster", "RayJob"):
        return []
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def _problems(manifests: list[Manifests]) -> list[str]:
    return [f"{number}: {finding.where}: {finding.text}" for number, finding in check_together(manifests)]


def _of_kind(manifests: list[Manifests], kind: str) -> Manifests:
    return next(manifest for manifest in manifests if manifest["kind"] == kind)


def _job(change: Callable[[Manifests], Any]) -> Callable[[list[Manifests]], Any]:
    return lambda manifests: change(_of_kind(manifests, "RayJob"))


def _queue(change: Callable[[Manifests], Any]) -> Callable[[list[Manifests]], Any]:
    return lambda manifests: change(_of_kind(manifests, "ClusterQueue")["spec"]["resourceGroups"][0])


def _resources(template: Manifests) -> Manifests:
    return template["spec"]["containers"][0]["resources"]


BROKEN: dict[str, tuple[tuple[str, ...], Callable[[list[Manifests]], Any], str]] = {
    "no such queue": (
        (QUEUE, JOB),
        _job(lambda job: job["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "mine"})),
        "there is no LocalQueue mine beside the job; there is ray-sassl",
    ),
    "a queue in another namespace": ((QUEUE, JOB), _job(lambda job: job["metadata"].update(namespace="other")), "is in another namespace"),
    "a resource that is not covered": (
        (QUEUE, JOB),
        _queue(lambda group: group["coveredResources"].remove("ephemeral-storage")),
        "asks for ephemeral-storage, which the ClusterQueue does not cover",
    ),
    "a quota that is too small": (
        (QUEUE, JOB),
        _queue(lambda group: group["flavors"][3]["resources"][3].update(nominalQuota="4")),
        r"need 8 nvidia.com/gpu of the flavor ray-sassl-train, more than is left",
    ),
    "groups that are too many for a quota": (
        (QUEUE, JOB),
        _job(lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas=40)),
        "need 600 cpu, 1.11669e.12 memory, 9.87842e.11 ephemeral-storage of the flavor ray-sassl-decode",
    ),
    "no flavor of its nodes": (
        (QUEUE, JOB),
        _job(lambda job: _templates(job)[1]["spec"]["nodeSelector"].update({"ray-sassl/group": "other"})),
        "no flavor has the labels of its nodeSelector",
    ),
    "a flavor that is missing": (
        (QUEUE,),
        lambda manifests: manifests.remove(next(item for item in manifests if item["metadata"]["name"] == "ray-sassl-train")),
        "there is no ResourceFlavor ray-sassl-train beside the queue",
    ),
    "no pool": (
        (POOLS, CLUSTER),
        lambda manifests: manifests.remove(next(item for item in manifests if item["metadata"]["name"] == "ray-sassl-train")),
        "no NodePool has the label ray-sassl/group: train",
    ),
    "a pool with a smaller machine": (
        (POOLS, CLUSTER),
        lambda manifests: manifests[1]["spec"]["template"]["spec"]["requirements"][1]["values"].append("c7i.2xlarge"),
        "do not fit on c7i.2xlarge",
    ),
    "a taint that is not tolerated": (
        (POOLS, CLUSTER),
        lambda manifests: manifests[0]["spec"]["template"]["spec"].update(taints=[{"key": "mine", "effect": "NoSchedule"}]),
        "headGroupSpec.template.spec.tolerations: lack mine, the taint of their NodePool",
    ),
    "metrics that nobody collects": (
        ("base/pod-monitor.yaml", CLUSTER),
        lambda manifests: manifests[0]["spec"]["podMetricsEndpoints"].pop(),
        "no PodMonitor collects the port dash-metrics",
    ),
    "metrics behind a closed door": (
        ("base/network-policy.yaml", CLUSTER),
        lambda manifests: manifests[0]["spec"]["ingress"][2]["ports"].pop(),
        "no NetworkPolicy lets Prometheus reach port 44227",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_together_is_refused_for_its_reason(case: str):
    names, break_it, reason = BROKEN[case]
    manifests = _read(*names)
    assert _problems(manifests) == []
    break_it(manifests)
    problems = _problems(manifests)
    assert any(re.search(reason, problem) for problem in problems), problems


def test_pods_without_a_node_selector_take_the_first_flavor_with_room():
    manifests = [manifest for name in (QUEUE, JOB) for manifest in yaml.safe_load_all((KUBERAY / name).read_text())]
    assert _problems(manifests) == []


def test_a_queue_that_is_in_the_cluster_already_is_not_asked_for():
    assert _problems(_read(JOB)) == []


def test_manifests_of_any_shape_are_answered():
    for spec in (None, 3, [], {"resourceGroups": [3, {"flavors": [3]}], "rayClusterSpec": {"headGroupSpec": {"template": 3}}}):
        kinds = ("ClusterQueue", "LocalQueue", "ResourceFlavor", "NodePool", "PodMonitor", "NetworkPolicy", "RayJob", "RayCronJob")
        labels = {"labels": {"kueue.x-k8s.io/queue-name": "x"}}
        assert isinstance(_problems([{"kind": kind, "metadata": {"name": "x", **labels}, "spec": spec} for kind in kinds]), list)
    assert _problems([]) == _problems([3, None]) == []  # pyright: ignore[reportArgumentType]
