"""Inputs from the field: rebuilt from what people reported of tools of this trade, by the script beside the shared test data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def build(shared_dir: Path) -> ModuleType:
    """The script that makes the inputs."""
    path = shared_dir / "field" / "build.py"
    if not path.is_file():
        pytest.skip(f"the inputs from the field are not at {path}")
    spec = importlib.util.spec_from_file_location("field_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def field(build: ModuleType, tmp_path: Path) -> Callable[[str], Path]:
    """Makes the input of that name in a folder of its own."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        getattr(build, name)(folder)
        return folder

    return make
