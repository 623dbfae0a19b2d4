"""The notebook runs from its first cell to its last, here on a few small images."""

from __future__ import annotations

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_run.ipynb"
SETTINGS = """photos = "photos/"
changes = {"backbone.name": "resnet18", "views.size_px": 32, "evaluate.size_px": 32, "train.epochs": 1, "train.global_batch": 16}
"""


def test_the_notebook_is_kept_without_outputs():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.ray
def test_the_notebook_leads_from_a_folder_to_an_encoder_in_timm(forking_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]), prepend=":")
    draws = np.random.default_rng(0)
    for number in range(72):
        folder = tmp_path / "photos" / f"kind-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (40, 36, 3), np.uint8)).save(folder / f"{number}.png")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code[0].source = SETTINGS
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs[-1] for cell in code if cell.outputs]
    assert "image/png" in outputs[0].data  # the views
    assert any("image/png" in output.get("data", {}) for output in outputs[1:])  # the map
    assert outputs[-1].data["text/plain"] == "512"
