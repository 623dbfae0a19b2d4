"""A distribution that brings plug-ins, as `pip install` would leave it in a folder of the import path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, package: str, files: Mapping[str, str]) -> None:
    """Put the package's files (contents by path) into the folder, with an entry point that names it."""
    for name, content in files.items():
        path = folder / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for parent in (path.parent, folder / package):
            (parent / "__init__.py").touch()
        path.write_text(content)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[ray_sassl.plugins]\nmine = {package}\n")
