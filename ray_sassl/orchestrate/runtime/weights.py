"""Published weights on a cluster: each node reads them from its cache, else from the shared path in the config, else from the driver
through Ray, but never from their publisher.

A small actor keeps the driver's copy. It is not an argument of the actors that need it, because an actor cannot be restarted if an argument
in the object store is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.runtime.session import pin_to_driver

if TYPE_CHECKING:
    from ray_sassl.style.stylizers import StylizerConfig


class WeightsKeeper:
    """The actor that keeps the content of a weights file."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def content(self) -> bytes:
        return self._content


def keep(content: bytes) -> ActorHandle:
    """An actor that keeps the content as long as its handle exists; `kept` returns it, on any node."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=pin_to_driver(), max_concurrency=4)(WeightsKeeper)
    return remote.remote(content)


def kept(keeper: ActorHandle) -> bytes:
    """The keeper's content."""
    return cast(bytes, ray.get(keeper.content.remote()))


def keep_weights(config: StylizerConfig) -> ActorHandle | None:
    """The actor with the stylizer's weights for nodes without them; None if every node finds them by itself.

    Raises:
        MissingWeightsError: the driver has none either.
        BadWeightsError: its file is damaged.
    """
    content = driver_weights(config)
    return None if content is None or config.weights_location() is not None else keep(content)


def driver_weights(config: StylizerConfig) -> bytes | None:
    """The content of the stylizer's published weights, as found by this process; None if it needs none.

    Raises:
        MissingWeightsError: they are missing.
        BadWeightsError: the file is damaged.
    """
    from ray_sassl.style.weights import read_weights

    weights = config.published_weights()
    return None if weights is None else read_weights(weights, config.weights_location())


def receive_weights(config: StylizerConfig, keeper: ActorHandle | None) -> None:
    """Put the stylizer's weights into this node's cache if they are needed and missing."""
    from ray_sassl.style.weights import install_weights, weights_path

    weights = config.published_weights()
    if weights is not None and keeper is not None and not weights_path(weights).exists():
        install_weights(weights, kept(keeper))
