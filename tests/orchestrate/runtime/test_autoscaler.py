"""What a run waits for, and when the wait is given up: what Ray's autoscaler reports, read by us; real clusters are in
`test_autoscaling.py`."""

# Ray's generated messages have no types.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from ray.core.generated.autoscaler_pb2 import DEAD, AutoscalingState, GangResourceRequest, GetClusterStatusReply, PendingInstanceRequest

from ray_sassl.orchestrate.runtime import autoscaler
from ray_sassl.orchestrate.runtime.autoscaler import PATIENCE_S, Announcer, Waiting, asked_for
from ray_sassl.orchestrate.runtime.capacity import Need, ResourcesError, cluster_status, without_room
from ray_sassl.orchestrate.runtime.session import GROUP_LABEL

TRAIN = Need("2 training workers", 2, {"CPU": 1.0, "GPU": 1.0}, "train")
TASK = Need("one task", 1, {"CPU": 1.0})


def test_what_has_a_group_takes_its_nodes_and_the_rest_takes_what_is_left():
    nodes = [({"CPU": 2.0, "GPU": 1.0}, "train"), ({"CPU": 1.0, "GPU": 1.0}, "train")]
    assert without_room([TASK, TRAIN], nodes) == []
    assert without_room([TASK, TRAIN], nodes[1:]) == [(TRAIN, 1), (TASK, 1)]
    assert without_room([TRAIN], [({"CPU": 8.0, "GPU": 8.0}, "stylize")]) == [(TRAIN, 2)]


def test_room_that_is_spread_over_nodes_is_none():
    assert without_room([Need("a worker", 1, {"CPU": 2.0})], [({"CPU": 1.5}, None)] * 4) == [(Need("a worker", 1, {"CPU": 2.0}), 1)]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a look some seconds after the one before, at a cluster with such nodes and such a report of its autoscaler."""
    now = 1000.0
    monkeypatch.setattr(autoscaler.time, "monotonic", lambda: now)
    monkeypatch.setattr(autoscaler, "present", lambda name: 0.0)
    waiting = Waiting([TRAIN, TASK])

    def look(state: AutoscalingState, nodes: int = 0, seconds: float = 5, has_begun: bool = False) -> str:
        nonlocal now
        now += seconds
        reply = GetClusterStatusReply(autoscaling_state=state)
        for _ in range(nodes):
            reply.cluster_resource_state.node_states.add(total_resources={"CPU": 2, "GPU": 1}, labels={GROUP_LABEL: "train"})
        reply.cluster_resource_state.node_states.add(total_resources={"CPU": 64, "GPU": 8}, labels={GROUP_LABEL: "train"}, status=DEAD)
        monkeypatch.setattr(autoscaler, "cluster_status", lambda: reply)
        return waiting.look(has_begun=has_begun)

    return look


def _infeasible() -> AutoscalingState:
    """No kind of node has room for the training workers."""
    gang = GangResourceRequest()
    bundles = gang.bundle_selectors.add()
    for _ in range(TRAIN.count):
        selector = bundles.resource_requests.add(resources_bundle=TRAIN.each).label_selectors.add()
        selector.label_constraints.add(label_key=GROUP_LABEL, label_values=["train"])
    return AutoscalingState(autoscaler_state_version=7, infeasible_gang_resource_requests=[gang])


def test_the_wait_says_what_for_and_which_nodes_are_on_their_way(seen):
    coming = AutoscalingState(pending_instance_requests=[PendingInstanceRequest(ray_node_type_name="gpu-node", count=2)])
    text = seen(coming)
    assert "2 x 1 CPU, 1 GPU on the group train for 2 training workers" in text
    assert "1 x 1 CPU for one task" in text
    assert "nodes on their way: 2 of gpu-node" in text
    assert "1 x 1 CPU, 1 GPU on the group train" in seen(coming, nodes=1)
    assert seen(coming, nodes=2) == ""


def test_a_node_that_could_not_be_started_is_named_with_the_reason(seen):
    failed = AutoscalingState()
    failed.failed_instance_requests.add(ray_node_type_name="gpu-node", count=1, reason="quota exceeded")
    assert "could not be started: gpu-node: quota exceeded" in seen(failed)


def test_what_no_node_can_ever_have_room_for_ends_the_wait_after_a_minute_with_the_sum(seen):
    for _ in range(int(PATIENCE_S / 5)):
        assert "no node is on its way" in seen(_infeasible())
    with pytest.raises(
        ResourcesError,
        match=r"2 x 1 CPU, 1 GPU on the group train.*\n.*up \(0\)(?s:.)*In total it needs 3 CPUs, and the cluster has 0:\n  2 for 2 train",
    ):
        seen(_infeasible())


def test_a_cluster_that_does_not_grow_is_not_waited_for_either(seen):
    assert seen(AutoscalingState(), nodes=1)
    with pytest.raises(ResourcesError, match="1 x 1 CPU, 1 GPU on the group train"):
        seen(AutoscalingState(), nodes=1, seconds=PATIENCE_S + 5)


def test_nodes_on_their_way_and_a_run_that_has_begun_are_waited_for(seen):
    state = _infeasible()
    assert seen(state, seconds=PATIENCE_S + 5, has_begun=True)
    state.pending_instance_requests.add(ray_node_type_name="gpu-node", count=1)
    assert seen(state, seconds=PATIENCE_S + 5)


def test_what_others_cannot_have_is_not_ours_to_give_up_for(seen):
    other = AutoscalingState(autoscaler_state_version=7)
    other.infeasible_resource_requests.add(resources_bundle={"CPU": 1000.0})
    assert seen(other, seconds=PATIENCE_S + 5)
    assert seen(other, seconds=PATIENCE_S + 5)


@pytest.mark.ray
def test_a_cluster_that_grows_is_asked_for_all_needs_at_once_until_the_work_ends(ray_cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(autoscaler, "grows", lambda: True)
    needs = [Need("tasks", 3, {"CPU": 7.0}, "decode"), Need("stylizers", 2, {"CPU": 1.0, "GPU": 0.5}, "stylize")]
    with asked_for(needs):
        _until(lambda: _asked() == {(7.0, 0.0, "decode"): 3, (1.0, 0.5, "stylize"): 2})
    _until(lambda: not _asked())
    monkeypatch.setattr(autoscaler, "grows", lambda: False)
    with asked_for(needs):
        assert not _asked()


def _asked() -> dict[tuple[float, float, str], int]:
    """How many requests of CPUs and GPUs of a group wait for a node."""
    found = {}
    for counted in cluster_status().cluster_resource_state.pending_resource_requests:
        amounts = counted.request.resources_bundle
        groups = [label for one in counted.request.label_selectors for rule in one.label_constraints for label in rule.label_values]
        if groups:
            found[amounts["CPU"], amounts["GPU"], groups[0]] = counted.count
    return found


def _until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.1)


def test_the_wait_is_announced_when_it_changes_and_once_a_minute(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    announce = Announcer(said.append)
    for seconds, text in ((0, ""), (1, "a"), (2, "a"), (30, "b"), (62, "b"), (91, "b"), (92, ""), (100, "a")):
        monkeypatch.setattr(autoscaler.time, "monotonic", lambda seconds=seconds: seconds)
        announce(text)
    assert said == ["waiting: a", "waiting: b (29 s so far)", "waiting: b (90 s so far)", "waiting: a"]
