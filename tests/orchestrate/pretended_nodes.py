"""The autoscaler's provider of nodes that are processes of this machine."""

from __future__ import annotations

import json
from typing import Any

from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from benchmarks.nodes import free_ports


class PretendedNodes(FakeMultiNodeProvider):
    """Ray's provider of such nodes, whose ports are given: a raylet that has to wait for its agents' ports aborts on a busy machine."""

    def create_node_with_resources_and_labels(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int, resources: dict[str, float], labels: dict[str, str]
    ) -> None:
        with self.lock:
            for _ in range(count):
                self._start(tags, dict(resources), labels)

    def _start(self, tags: dict[str, str], resources: dict[str, float], labels: dict[str, str]) -> None:
        node_id = self._next_hex_node_id()
        listen, agent, metrics, env_agent = free_ports(4)
        params = RayParams(
            min_worker_port=0,
            max_worker_port=0,
            dashboard_port=None,
            dashboard_agent_listen_port=listen,
            metrics_agent_port=agent,
            metrics_export_port=metrics,
            runtime_env_agent_port=env_agent,
            num_cpus=resources.pop("CPU", 0),
            num_gpus=resources.pop("GPU", 0),
            object_store_memory=resources.pop("object_store_memory", None),
            resources=resources,
            labels=labels,
            redis_address=self._gcs_address,
            gcs_address=self._gcs_address,
            env_vars={
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id,
                "RAY_CLOUD_INSTANCE_ID": node_id,
                "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
                ray_constants.RESOURCES_ENVIRONMENT_VARIABLE: json.dumps(resources),
                ray_constants.LABELS_ENVIRONMENT_VARIABLE: json.dumps(labels),
            },
        )
        node = Node(params, head=False, shutdown_at_exit=False, spawn_reaper=False)
        ours = {TAG_RAY_NODE_KIND: NODE_KIND_WORKER, TAG_RAY_NODE_NAME: node_id, TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
        self._nodes[node_id] = {"tags": ours | tags, "node": node}
