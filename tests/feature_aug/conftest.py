"""The configs that the shared tests run over: every feature augmentation that is found, with each choice of its fields of few choices."""

from __future__ import annotations

import itertools
from typing import Literal, get_args, get_origin

import pytest

from ray_sassl.feature_aug import FeatureAugConfig
from ray_sassl.plugins import load_plugin, plugin_names


def variants() -> dict[str, FeatureAugConfig]:
    """The configs by a name that says which they are."""
    found = {}
    for name in plugin_names("ray_sassl.feature_aug"):
        config_class = load_plugin("ray_sassl.feature_aug", name).Config
        options = {
            field: get_args(info.annotation) for field, info in config_class.model_fields.items() if get_origin(info.annotation) is Literal
        }
        for choice in itertools.product(*options.values()):
            found["-".join([name, *choice])] = config_class(**dict(zip(options, choice, strict=True)))
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "config" in metafunc.fixturenames:
        found = variants()
        metafunc.parametrize("config", found.values(), ids=found.keys())
