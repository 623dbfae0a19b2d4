"""Published weights on a cluster: every node takes them from its cache, else from the shared path that the config names, else from the driver
through Ray; never from their publisher.

The driver's copy is kept by a small actor instead of being an argument of the actors that need it: an actor's start cannot be repeated where an
argument in the object store is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.control import on_this_node

if TYPE_CHECKING:
    from ray_sassl.stylize import StylizerConfig


class WeightsKeeper:
    """The actor that holds the content of a file of weights."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def content(self) -> bytes:
        return self._content


def keep(content: bytes) -> ActorHandle:
    """An actor that holds the content for as long as the handle is held; `kept` gives it back, on any node."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, max_concurrency=4, scheduling_strategy=on_this_node())(WeightsKeeper)
    return remote.remote(content)


def kept(keeper: ActorHandle) -> bytes:
    """What the keeper holds."""
    return cast(bytes, ray.get(keeper.content.remote()))


def keep_weights(config: StylizerConfig) -> ActorHandle | None:
    """What nodes without the stylizer's weights ask for them; None where every node finds them by itself.

    Raises:
        MissingWeightsError: the driver has none either.
        BadWeightsError: its file is damaged.
    """
    from ray_sassl.nn.weights import read_weights

    weights = config.published_weights()
    if weights is None:
        return None
    location = config.weights_location()
    content = read_weights(weights, location)
    return None if location is not None else keep(content)


def receive_weights(config: StylizerConfig, keeper: ActorHandle | None) -> None:
    """Put the stylizer's weights into this node's cache, where they are needed and not there yet."""
    from ray_sassl.nn.weights import install_weights, weights_path

    weights = config.published_weights()
    if weights is not None and keeper is not None and not weights_path(weights).exists():
        install_weights(weights, kept(keeper))
