"""Configs as YAML: `ray-sassl experiments NAME` prints it, run directories contain it, and `pretrain` takes it instead of a name. Configs
are also sent between processes as YAML, so that processes that only pass one on do not import the classes."""

from __future__ import annotations

from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ray_sassl.config.overrides import explain
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.files import storage
from ray_sassl.files.safe_yaml import MAX_BYTES, load_document
from ray_sassl.process.errors import UsageError

ModelT = TypeVar("ModelT", bound=BaseModel)


def to_yaml(config: BaseModel) -> str:
    """The whole tree, defaults included, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def from_yaml(text: str, source: str = "the config") -> ExperimentConfig:
    """`model_from_yaml` for an experiment."""
    return model_from_yaml(ExperimentConfig, text, source)


def model_from_yaml(model: type[ModelT], text: str, source: str = "the config") -> ModelT:
    """The inverse of `to_yaml`; missing fields get their defaults.

    Raises:
        UsageError: the text is not YAML, has an unknown field, or a value that a field does not accept.
    """
    tree: Any = load_document(text, source)
    if not isinstance(tree, dict):
        raise UsageError(f"{source} is not a mapping of fields but a {type(tree).__name__}")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"{source}: {explain(error)}") from error


def read_config(path: str) -> ExperimentConfig:
    """The config in a YAML file, local or at a URI."""
    return from_yaml(storage.read_text(path, MAX_BYTES), source=path)
