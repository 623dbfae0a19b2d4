"""Published weights on nodes that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import ray

from ray_sassl.orchestrate.runtime.weights import keep_weights, receive_weights
from ray_sassl.style.stylizers import StylizerConfig
from ray_sassl.style.stylizers.magenta import WEIGHTS
from ray_sassl.style.stylizers.magenta import Config as Magenta
from ray_sassl.style.stylizers.swift import Config as Swift
from ray_sassl.style.weights import MissingWeightsError, install_weights, weights_path


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_without_weights_get_the_drivers(ray_cluster: None, weights_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Node:
        """An actor with a cache of its own, as on another machine."""

        def prepare(self, config: StylizerConfig, keeper: Any) -> tuple[str, bytes, int]:
            """Where the weights are after they were received, their content, and the width of the stylizer's codes."""
            import torch

            receive_weights(config, keeper)
            path = weights_path(WEIGHTS)
            return str(path), path.read_bytes(), config.build(torch.device("cpu")).code_size

    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))
    content = weights_path(WEIGHTS).read_bytes()
    keeper = keep_weights(Magenta())
    for name in ("one", "two"):
        options = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"RAY_SASSL_CACHE": str(tmp_path / name)}}}
        node = cast(Any, ray.remote)(**options)(Node).remote()
        path, received, code_size = ray.get(node.prepare.remote(Magenta(), keeper))
        assert Path(path).is_relative_to(tmp_path / name)
        assert (received, code_size) == (content, 100)
        ray.kill(node)


def test_a_stylizer_without_published_weights_needs_no_keeper():
    assert keep_weights(Swift()) is None
    receive_weights(Swift(), None)


def test_weights_on_a_shared_path_are_checked_here_and_kept_by_nobody(weights_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))
    shared = tmp_path / "magenta.safetensors"
    shared.write_bytes(weights_path(WEIGHTS).read_bytes())
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "empty"))
    assert keep_weights(Magenta(weights=str(shared))) is None
    with pytest.raises(MissingWeightsError, match="there are no weights"):
        keep_weights(Magenta(weights=str(tmp_path / "elsewhere")))


def test_a_driver_without_weights_says_how_to_get_them_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    with pytest.raises(MissingWeightsError, match="ray-sassl weights fetch magenta"):
        keep_weights(Magenta())


def test_a_node_that_has_the_weights_asks_nobody(weights_cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(weights_cache))
    receive_weights(Magenta(), cast(Any, object()))  # has no method to ask
    install_weights(WEIGHTS, b"")  # what is there is left as it is
    assert weights_path(WEIGHTS).stat().st_size > 1_000_000
