"""All that is taken from Ray's private packages, with the reason: the first place to look when a new version of Ray breaks something.

Names are imported when they are asked for, since most of Ray's packages pull in others that a light process should not pay for.
pyproject.toml bounds Ray's version from above for the sake of this file.
"""

# The messages of the autoscaler are made by protobuf, which type checkers cannot see.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray._private.state import state
    from ray._private.worker import global_worker
    from ray.autoscaler._private.util import prepare_config, validate_config
    from ray.core.generated.autoscaler_pb2 import (
        DEAD,
        DRAINING,
        AutoscalingState,
        ClusterResourceState,
        GangResourceRequest,
        GetClusterStatusReply,
        ResourceRequest,
    )
    from ray.data._internal.execution.execution_callback import ExecutionCallback
    from ray.data._internal.execution.interfaces import BlockEntry, RefBundle
    from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.context import get_train_context
    from ray.train.v2._internal.execution.controller.state import ResizingState, TrainControllerState

__all__ = [
    "DEAD",
    "DRAINING",
    "AutoscalingState",
    "BlockEntry",
    "ClusterResourceState",
    "ControllerCallback",
    "ExecutionCallback",
    "GangResourceRequest",
    "GetClusterStatusReply",
    "InputDataBuffer",
    "RefBundle",
    "ResizingState",
    "ResourceRequest",
    "TrainControllerState",
    "get_train_context",
    "global_worker",
    "prepare_config",
    "state",
    "validate_config",
]

_MODULES = {
    # To plan the stream while it runs: Ray wants all read tasks before it starts the first. They are added to the operator that hands them
    # out.
    "ray.data._internal.execution.interfaces": ("BlockEntry", "RefBundle"),
    "ray.data._internal.execution.operators.input_data_buffer": ("InputDataBuffer",),
    # To add them, and to pause the scheduling loop, which spins while blocks wait for a slower consumer; the callback has no public form.
    "ray.data._internal.execution.execution_callback": ("ExecutionCallback",),
    # To write a checkpoint before an elastic run's workers are started in another number; Ray calls back after it has ended them.
    "ray.train.v2._internal.execution.callback": ("ControllerCallback",),
    "ray.train.v2._internal.execution.controller.state": ("ResizingState", "TrainControllerState"),
    # Notices of preemption without the barrier over all ranks that `ray.train.get_preemption_info()` is.
    "ray.train.v2._internal.execution.context": ("get_train_context",),
    # What the autoscaler waits for and what it can never start, as `ray status` shows it; there is no public call.
    "ray._private.worker": ("global_worker",),
    "ray._private.state": ("state",),
    "ray.core.generated.autoscaler_pb2": (
        "DEAD",
        "DRAINING",
        "AutoscalingState",
        "ClusterResourceState",
        "GangResourceRequest",
        "GetClusterStatusReply",
        "ResourceRequest",
    ),
    # What `ray up` would say of a launcher file, without reaching a cloud.
    "ray.autoscaler._private.util": ("prepare_config", "validate_config"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
