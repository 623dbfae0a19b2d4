"""The autoscaler's provider of nodes that are processes of this machine."""

from __future__ import annotations

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class PretendedNodes(FakeMultiNodeProvider):
    """Ray's own provider of such nodes under a name that a cluster definition can give as `external`."""
