"""Manifests that stand beside those of Ray: each broken copy of a shipped file is refused for its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.others import other_kinds

KUBERAY = Path(__file__).parents[2] / "cluster/kuberay"

BROKEN: dict[str, tuple[str, int, Callable[[dict[str, Any]], Any], str]] = {
    "a pool of a namespace": (
        "karpenter/nodepools.yaml",
        0,
        lambda pool: pool["metadata"].update(namespace="x"),
        "metadata.namespace: a NodePool belongs to the whole cluster",
    ),
    "a queue of a namespace": (
        "kueue/queue.yaml",
        0,
        lambda queue: queue["metadata"].update(namespace="x"),
        "metadata.namespace: a ClusterQueue belongs to the whole cluster",
    ),
    "a pool that packs": (
        "karpenter/nodepools.yaml",
        1,
        lambda pool: pool["spec"]["disruption"].update(consolidationPolicy="WhenEmptyOrUnderutilized"),
        "consolidationPolicy: is not WhenEmpty, so Karpenter ends pods",
    ),
    "a pool by default": ("karpenter/nodepools.yaml", 1, lambda pool: pool["spec"].pop("disruption"), "is not WhenEmpty"),
    "GPUs for all": (
        "karpenter/nodepools.yaml",
        2,
        lambda pool: pool["spec"]["template"]["spec"].pop("taints"),
        "taints: are missing: pods that need no GPU may take up its machines",
    ),
    "a flavor without a covered resource": (
        "kueue/queue.yaml",
        0,
        lambda queue: queue["spec"]["resourceGroups"][0]["flavors"][1]["resources"].pop(),
        "flavors[1].resources: must be those of coveredResources, in their order",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_manifest_is_refused_for_its_reason(case: str):
    name, number, break_it, reason = BROKEN[case]
    manifest = list(yaml.safe_load_all((KUBERAY / name).read_text()))[number]
    assert list(other_kinds(manifest)) == []
    break_it(manifest)
    (finding,) = other_kinds(manifest)
    assert reason in f"{finding.where}: {finding.text}"


def test_pools_that_are_not_of_a_ray_cluster_may_pack():
    pool = {"kind": "NodePool", "spec": {"disruption": {"consolidationPolicy": "WhenEmptyOrUnderutilized"}}}
    assert list(other_kinds(pool)) == []
