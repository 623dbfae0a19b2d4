"""Configs as YAML: what `ray-sassl experiments NAME` prints, what is in a run directory, what `pretrain` takes instead of a name, and the
form in which configs travel between processes, so that those which only pass one on do not import the classes."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ray_sassl.config.overrides import explain
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.files.safe_yaml import MAX_BYTES, load_document
from ray_sassl.plugins import UsageError

ModelT = TypeVar("ModelT", bound=BaseModel)


def to_yaml(config: BaseModel) -> str:
    """The whole tree, defaults included, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def from_yaml(text: str, source: str = "the config") -> ExperimentConfig:
    """`model_from_yaml` of an experiment."""
    return model_from_yaml(ExperimentConfig, text, source)


def model_from_yaml(model: type[ModelT], text: str, source: str = "the config") -> ModelT:
    """The inverse of `to_yaml`; fields that are left out have their defaults.

    Raises:
        UsageError: not YAML, an unknown field, or a value that a field does not take.
    """
    tree: Any = load_document(text, source)
    if not isinstance(tree, dict):
        raise UsageError(f"{source} holds no mapping of fields but {type(tree).__name__}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from error


def read_config(path: str) -> ExperimentConfig:
    """The config in a YAML file, local or at a URI."""
    return from_yaml(storage.read_text(path, MAX_BYTES), source=path)
