"""KubeRay's schemas, which take seconds to read, once for all modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.cluster.crds import Schemas, read_schemas


@pytest.fixture(scope="session")
def schemas(shared_dir: Path) -> Schemas:
    """KubeRay's, and those of other operators where they are there."""
    return {key: schema for folder in sorted(shared_dir.glob("*-crds")) for key, schema in read_schemas(folder).items()}
