"""Published weights on a cluster: every node takes them from its cache, else from the shared path that the config names, else from the
driver through Ray; never from their publisher.

The driver's copy is kept by a small actor instead of being an argument of the actors that need it: an actor's start cannot be repeated
where an argument in the object store is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import ray
from ray.actor import ActorHandle

from ray_sassl.orchestrate.runtime.session import pin_to_driver

if TYPE_CHECKING:
    from ray_sassl.style.stylizers import StylizerConfig


class WeightsKeeper:
    """The actor that holds the content of a file of weights."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def content(self) -> bytes:
        return self._content


def keep(content: bytes) -> ActorHandle:
    """An actor that holds the content for as long as the handle is held; `kept` gives it back, on any node."""
    remote: Any = cast(Any, ray.remote)(num_cpus=0, scheduling_strategy=pin_to_driver(), max_concurrency=4)(WeightsKeeper)
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
    content = driver_weights(config)
    return None if content is None or config.weights_location() is not None else keep(content)


def driver_weights(config: StylizerConfig) -> bytes | None:
    """The content of the stylizer's published weights, as this process finds them; None where it needs none.

    Raises:
        MissingWeightsError: they are not there.
        BadWeightsError: the file is damaged.
    """
    from ray_sassl.style.weights import read_weights

    weights = config.published_weights()
    return None if weights is None else read_weights(weights, config.weights_location())


def receive_weights(config: StylizerConfig, keeper: ActorHandle | None) -> None:
    """Put the stylizer's weights into this node's cache, where they are needed and not there yet."""
    from ray_sassl.style.weights import install_weights, weights_path

    weights = config.published_weights()
    if weights is not None and keeper is not None and not weights_path(weights).exists():
        install_weights(weights, kept(keeper))
