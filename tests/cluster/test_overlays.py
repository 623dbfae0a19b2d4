"""What `kubectl apply -k` makes of the overlays: every cloud, for a cluster that stays, one run, and a search every night."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.check import check_text
from ray_sassl.cluster.crds import Schemas
from ray_sassl.cluster.groups import ray_cluster_spec
from ray_sassl.cluster.machines import MACHINES

KUBERAY = Path(__file__).parents[2] / "cluster/kuberay"
CLOUDS = ("eks", "eks-auto", "karpenter", "gke")
KINDS = {"": "RayCluster", "-job": "RayJob", "-nightly": "RayCronJob"}
OVERLAYS = [f"{cloud}{suffix}" for cloud in CLOUDS for suffix in KINDS]
COMMON = {"Namespace", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "PrometheusRule"}
OF_THE_CLUSTER = {"Namespace", "ClusterQueue", "ResourceFlavor", "NodePool", "EC2NodeClass", "NodeClass"}

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")


@cache
def _built(overlay: str) -> str:
    return subprocess.run(["kubectl", "kustomize", str(KUBERAY / overlay)], capture_output=True, text=True, check=True).stdout


@cache
def _manifests(overlay: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(_built(overlay)))


def _of_kind(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in _manifests(overlay) if manifest["kind"] == kind]


def _pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The templates of the head and of the groups."""
    (spec,) = (found for manifest in _manifests(overlay) if (found := ray_cluster_spec(manifest)))
    groups = {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
    return {"head": spec["headGroupSpec"]["template"], **groups}


def test_there_is_an_overlay_for_each_cloud_and_each_use():
    found = {
        path.parent.name for path in KUBERAY.glob("*/kustomization.yaml") if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
    }
    assert found == {*OVERLAYS, "base"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_builds_into_manifests_that_pass_together(overlay: str, schemas: Schemas):
    assert check_text(_built(overlay), overlay, "2.60.0", schemas, lambda config: []) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_one_ray_cluster_and_all_that_guards_and_watches_it(overlay: str):
    kinds = {manifest["kind"] for manifest in _manifests(overlay)}
    suffix = next(suffix for suffix in sorted(KINDS, reverse=True) if overlay.endswith(suffix))
    assert kinds >= COMMON
    assert {kind for kind in kinds if kind.startswith("Ray")} == {KINDS[suffix]}
    assert ({"ClusterQueue", "LocalQueue", "ResourceFlavor"} <= kinds) == (suffix == "-job")
    assert all(account["metadata"]["annotations"] for account in _of_kind(overlay, "ServiceAccount"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_is_in_one_namespace_but_what_belongs_to_the_whole_cluster(overlay: str):
    for manifest in _manifests(overlay):
        expected = None if manifest["kind"] in OF_THE_CLUSTER else "ray-sassl"
        assert manifest["metadata"].get("namespace") == expected, manifest["kind"]


@pytest.mark.parametrize("overlay", [overlay for overlay in OVERLAYS if overlay not in CLOUDS])
def test_the_pods_of_runs_are_those_of_the_clouds_cluster(overlay: str):
    cloud = overlay.removesuffix("-job").removesuffix("-nightly")
    for group, template in _pods(cloud).items():
        run = _pods(overlay)[group]
        assert run["spec"]["nodeSelector"] == template["spec"]["nodeSelector"]
        assert run["metadata"]["annotations"] == template["metadata"]["annotations"]
        assert run["spec"]["containers"][0]["resources"] == template["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_workers_of_a_cloud_are_as_large_as_their_machines_allow(cloud: str):
    for group in ("decode", "stylize", "train"):
        template = _pods(cloud)[group]
        machine = MACHINES[template["metadata"]["annotations"]["ray-sassl/machine"]]
        asked = template["spec"]["containers"][0]["resources"]["requests"]
        assert (asked["cpu"], asked["memory"]) == (str(machine.pod_cpus), f"{machine.pod_memory_gib}Gi")
        assert (machine.max_pods is None) == (cloud == "gke")


@pytest.mark.parametrize("cloud", ["eks", "gke"])
def test_without_karpenter_pods_ask_for_the_machines_that_they_are_sized_for(cloud: str):
    for template in _pods(cloud).values():
        assert (
            template["spec"]["nodeSelector"]["node.kubernetes.io/instance-type"] == template["metadata"]["annotations"]["ray-sassl/machine"]
        )


@pytest.mark.parametrize("cloud", ["eks-auto", "karpenter"])
def test_each_pool_starts_also_the_machine_that_its_pods_are_sized_for(cloud: str):
    pools = {pool["spec"]["template"]["metadata"]["labels"]["ray-sassl/group"]: pool for pool in _of_kind(cloud, "NodePool")}
    kind = {"eks-auto": "NodeClass", "karpenter": "EC2NodeClass"}[cloud]
    (node_class,) = _of_kind(cloud, kind)
    for group, template in _pods(cloud).items():
        spec = pools[group]["spec"]["template"]["spec"]
        types = next(item["values"] for item in spec["requirements"] if item["key"] == "node.kubernetes.io/instance-type")
        assert template["metadata"]["annotations"]["ray-sassl/machine"] in types
        assert spec["nodeClassRef"]["kind"] == kind
        assert spec["nodeClassRef"]["name"] == node_class["metadata"]["name"]
        assert node_class["apiVersion"].startswith(f"{spec['nodeClassRef']['group']}/")


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_flavor_is_the_machine_that_a_group_asks_for(cloud: str):
    flavors = {flavor["metadata"]["name"]: flavor["spec"]["nodeLabels"] for flavor in _of_kind(f"{cloud}-job", "ResourceFlavor")}
    selectors = {f"ray-sassl-{group}": template["spec"]["nodeSelector"] for group, template in _pods(f"{cloud}-job").items()}
    assert flavors == selectors


def _dns_peers(overlay: str) -> list[dict[str, Any]]:
    policy = next(manifest for manifest in _of_kind(overlay, "NetworkPolicy") if manifest["metadata"]["name"] == "ray-sassl")
    return [peer for rule in policy["spec"]["egress"] if {"protocol": "UDP", "port": 53} in rule.get("ports", []) for peer in rule["to"]]


def test_pods_on_google_cloud_may_look_up_names_on_their_node():
    peers = _dns_peers("gke")
    assert {peer["ipBlock"]["cidr"] for peer in peers if "ipBlock" in peer} == {"169.254.20.10/32", "169.254.169.254/32"}
    labels = [peer["podSelector"]["matchLabels"] for peer in peers if "podSelector" in peer]
    assert labels == [{"k8s-app": "kube-dns"}, {"k8s-app": "node-local-dns"}]


def test_pods_of_auto_mode_where_names_are_looked_up_on_the_node_reach_the_address_of_the_service():
    found = {peer["ipBlock"]["cidr"] for peer in _dns_peers("eks-auto") if "ipBlock" in peer}
    assert found == {"172.20.0.10/32", "10.100.0.10/32"}
    (node_class,) = _of_kind("eks-auto", "NodeClass")
    assert node_class["spec"]["networkPolicy"] == "DefaultAllow"


def test_no_head_is_moved_however_many_clusters_share_the_namespace():
    (budget,) = _of_kind("eks", "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] >= 100


def test_trackers_find_their_keys_on_the_head_and_on_trainers_where_there_is_a_secret():
    for overlay in OVERLAYS:
        pods = _pods(overlay)
        for group in ("head", "train"):
            (source,) = pods[group]["spec"]["containers"][0]["envFrom"]
            assert source == {"secretRef": {"name": "ray-sassl-trackers", "optional": True}}


def test_the_dashboard_may_reach_the_prometheus_and_grafana_that_it_is_told_of():
    environment = {item["name"]: item["value"] for item in _pods("eks")["head"]["spec"]["containers"][0]["env"]}
    policy = next(manifest for manifest in _of_kind("eks", "NetworkPolicy") if manifest["metadata"]["name"] == "ray-sassl-head")
    places = {
        peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for rule in policy["spec"]["egress"] for peer in rule["to"]
    }
    for name in ("RAY_PROMETHEUS_HOST", "RAY_GRAFANA_HOST"):
        (place,) = places
        assert f".{place}.svc:" in environment[name]
    assert "RAY_GRAFANA_IFRAME_HOST" in environment
