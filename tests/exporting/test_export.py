"""An encoder as a folder that can be given away."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from PIL import Image

import ray_sassl
from ray_sassl.config.files import read_config
from ray_sassl.exporting.export import export_encoder
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from tests.exporting.conftest import MakeRun


def _run_code_of_the_card(**names: object) -> dict[str, Any]:
    """What the Python in `README.md` defines, given these names."""
    script = Path("card.py")
    script.write_text(Path("README.md").read_text().partition("```python\n")[2].partition("```")[0])
    return runpy.run_path(str(script), names)


def test_safetensors_are_read_by_load_encoder(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    out = tmp_path / "out"
    result = export_encoder(run_dir, "safetensors", str(out))
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    encoder = ray_sassl.load_encoder(run_dir)
    images = torch.rand(2, 3, 16, 16)
    for path in (out, out / "model.safetensors"):
        assert torch.equal(ray_sassl.load_encoder(path)(images), encoder(images))
    assert result.encoder.facts == encoder.facts
    assert read_config(str(out / "config.yaml")) == read_config(f"{run_dir}/config.yaml")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_the_code_of_the_card_loads_the_file_into_the_librarys_model(make_run: MakeRun, tmp_path: Path, library, monkeypatch):
    run_dir = make_run("backbone={name: resnet18, stem: cifar}")
    export_encoder(run_dir, library, str(tmp_path / "out"))
    images = torch.rand(2, 3, 16, 16)
    monkeypatch.chdir(tmp_path / "out")
    names = _run_code_of_the_card(images=images)
    assert type(names["model"]).__module__.startswith(library)
    with torch.inference_mode():
        assert torch.allclose(names["features"], ray_sassl.load_encoder(run_dir)(images), atol=1e-5)
        assert torch.allclose(ray_sassl.load_encoder("model.safetensors")(images), names["features"], atol=1e-5)


def test_a_linear_head_becomes_the_librarys_classifier(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run("backbone={name: resnet18, stem: cifar}")
    result = export_encoder(run_dir, "torchvision", str(tmp_path / "out"), with_head=True)
    state = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert state["fc.weight"].shape == (3, 512)
    encoder = ray_sassl.load_encoder(tmp_path / "out")
    assert encoder.head is not None
    assert torch.equal(encoder.head.weight, state["fc.weight"])
    assert result.head is not None
    assert f"{result.head.train_top1:.2%} of its 60 train images" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_runs_as_the_card_says(make_run: MakeRun, tmp_path: Path, monkeypatch):
    run_dir = make_run()
    export_encoder(run_dir, "onnx", str(tmp_path / "out"), with_head=True)
    encoder = ray_sassl.load_encoder(run_dir)
    images = torch.rand(4, 3, 16, 16)
    monkeypatch.chdir(tmp_path / "out")
    names = _run_code_of_the_card(images=images.numpy())
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(names["features"]), encoder(images), atol=1e-4, rtol=0)
    assert names["logits"].shape == (4, 3)


def test_the_card_says_what_how_good_and_whence(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run("train.epochs=3")
    (Path(run_dir) / "evaluate-knn.json").write_text('{"step": 7, "scores": {"step 7": {"top1": 0.875}, "raw pixels": {"top1": 0.5}}}')
    checkpoint = find_checkpoint(run_dir).path
    export_encoder(checkpoint, "safetensors", str(tmp_path / "out"), license="cc-by-4.0")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc-by-4.0"
    assert {"simclr", "resnet20"} <= set(front["tags"])
    for fact in (
        "60 images",
        "| knn | this one at step 7 | top1 | 87.50% |",
        "| knn | raw pixels | top1 | 50.00% |",
        "3 epochs were planned",
        "7 updates done",
        "c0ffee",
        checkpoint,
        f"torch {torch.__version__}",
        ray_sassl.load_encoder(run_dir).facts.weights_sha256,
        "loss 3.3",
        "cc-by-4.0",
        "16 x 16 px",
    ):
        assert fact in card, fact


def test_a_checkpoint_that_was_copied_away_from_its_run_is_exported_too(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    alone = tmp_path / "elsewhere" / "encoder"
    alone.parent.mkdir()
    Path(find_checkpoint(run_dir).path).rename(alone)
    export_encoder(str(alone), "safetensors", str(tmp_path / "out"))
    assert "has not been evaluated" in (tmp_path / "out" / "README.md").read_text()


def test_what_cannot_be_exported_writes_nothing(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"safetensors .*and onnx"):
        export_encoder(run_dir, "timm", str(out))
    with pytest.raises(UsageError, match=r"a linear head needs labeled images to be fitted on: 'evaluate\.train=\{path: FOLDER\}'"):
        export_encoder(run_dir, "safetensors", str(out), with_head=True, overrides=["evaluate.train=null"])
    assert not out.exists()
    export_encoder(run_dir, "safetensors", str(out))
    with pytest.raises(UsageError, match=r"already contains model\.safetensors, README\.md; give another --out"):
        export_encoder(run_dir, "onnx", str(out))


def test_timm_reads_the_file_as_a_checkpoint(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run("backbone={name: timm/resnet10t}")
    export_encoder(run_dir, "timm", str(tmp_path / "out"))
    path = tmp_path / "out" / "model.safetensors"
    model = timm.create_model("resnet10t", num_classes=0, checkpoint_path=str(path)).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(model(images), ray_sassl.load_encoder(run_dir)(images), atol=1e-5)
    with pytest.raises(UsageError, match="torchvision has no resnet10t"):
        export_encoder(run_dir, "torchvision", str(tmp_path / "other"))


@pytest.mark.parametrize("with_head", [False, True])
def test_a_folder_for_hugging_face_is_loaded_by_timm_with_its_own_preparation_of_images(
    make_run: MakeRun, tmp_path: Path, with_head: bool, monkeypatch: pytest.MonkeyPatch
):
    run_dir = make_run("backbone={name: resnet18}")
    result = export_encoder(run_dir, "hf", str(tmp_path / "out"), with_head=with_head, size_px=96)
    photo = Image.effect_noise((120, 120), 60).convert("RGB")
    images = result.encoder.preprocess(photo)[None]
    monkeypatch.chdir(tmp_path / "out")
    names = _run_code_of_the_card(images=images)
    torch.testing.assert_close(names["prepare"](photo)[None], images, atol=1e-5, rtol=0)
    with torch.inference_mode():
        features = result.encoder(images)
        expected = result.encoder.head(features) if result.encoder.head is not None else features
    torch.testing.assert_close(names["logits" if with_head else "features"], expected, atol=1e-4, rtol=1e-4)
    assert names["model"].num_classes == (3 if with_head else 0)


def test_a_stem_that_timm_lacks_is_not_exported_for_hugging_face(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run("backbone={name: resnet18, stem: cifar}")
    with pytest.raises(UsageError, match=r"stem=cifar cannot be described in config\.json.* Formats that fit: timm"):
        export_encoder(run_dir, "hf", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
