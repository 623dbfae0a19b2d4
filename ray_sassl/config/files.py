"""Configs as YAML: what `ray-sassl experiments NAME` prints, what stands in a run directory, and what `pretrain` takes for a name."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from ray_sassl.config.overrides import explain
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.files.safe_yaml import MAX_BYTES, load_document
from ray_sassl.plugins import UsageError


def to_yaml(config: ExperimentConfig) -> str:
    """The whole tree, defaults included, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def from_yaml(text: str, source: str = "the config") -> ExperimentConfig:
    """The inverse of `to_yaml`; fields that are left out have their defaults.

    Raises:
        UsageError: not YAML, an unknown field, or a value that a field does not take.
    """
    tree: Any = load_document(text, source)
    if not isinstance(tree, dict):
        raise UsageError(f"{source} holds no mapping of fields but {type(tree).__name__}")
    try:
        return ExperimentConfig.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from error


def read_config(path: str) -> ExperimentConfig:
    """The config in a YAML file, local or at a URI."""
    return from_yaml(storage.read_text(path, MAX_BYTES), source=path)
