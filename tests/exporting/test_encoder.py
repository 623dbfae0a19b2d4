"""An encoder taken out of a run, a checkpoint or a file."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image

import ray_sassl
from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.exporting.encoder import encoder_bytes, encoder_from_bytes, load_encoder
from ray_sassl.nn.digest import weights_sha256
from ray_sassl.nn.normalize import normalize
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import load_backbone
from ray_sassl.views.center_crop import EvaluationView
from tests.exporting.conftest import MakeRun

PIXELS = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)


def test_the_package_loads_an_encoder_and_imports_torch_only_then():
    code = "import sys, ray_sassl; assert 'torch' not in sys.modules; ray_sassl.load_encoder"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_and_its_checkpoint_give_the_backbone_in_evaluation_mode(make_run: MakeRun):
    run_dir = make_run()
    encoder = ray_sassl.load_encoder(run_dir)
    _, backbone = load_backbone(find_checkpoint(run_dir))
    images = encoder.preprocess(PIXELS)[None]
    assert not encoder.training
    assert encoder(images).shape == (1, encoder.num_features) == (1, 64)
    assert torch.equal(encoder(images), backbone.eval()(images))
    again = load_encoder(find_checkpoint(run_dir).path)
    assert again.facts == encoder.facts
    assert torch.equal(again(images), encoder(images))


def test_loading_does_not_change_the_callers_random_numbers(make_run: MakeRun):
    run_dir = make_run()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_encoder(run_dir)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("size_px", [16, 96])
def test_preprocess_is_what_encoders_are_evaluated_on(make_run: MakeRun, size_px):
    run_dir = make_run(f"evaluate.size_px={size_px}", "train.pixel_mean=[0.4, 0.5, 0.6]")
    preprocess = load_encoder(run_dir).preprocess
    pixels = np.asarray(EvaluationView(size_px).of(Image.fromarray(PIXELS)))
    expected = normalize(torch.from_numpy(pixels.copy())[None], (0.4, 0.5, 0.6), preprocess.std)[0]
    assert preprocess(PIXELS).shape == (3, size_px, size_px)
    assert torch.equal(preprocess(PIXELS), expected)


def test_preprocess_takes_pictures_arrays_files_and_bytes(make_run: MakeRun, tmp_path: Path):
    preprocess = pickle.loads(pickle.dumps(load_encoder(make_run()).preprocess))
    path = tmp_path / "image.png"
    Image.fromarray(PIXELS).save(path)
    for image in (Image.fromarray(PIXELS), path, str(path), path.read_bytes()):
        assert torch.equal(preprocess(image), preprocess(PIXELS))
    gray = PIXELS[..., :1].repeat(3, axis=2)
    assert torch.equal(preprocess(Image.fromarray(gray[..., 0])), preprocess(gray))
    with pytest.raises(UsageError, match=r"RGB \(H, W, 3\) uint8, this one is \(31, 45\) uint8"):
        preprocess(PIXELS[..., 0])
    path.write_bytes(b"GIF89a")
    with pytest.raises(UsageError, match=r"image\.png: not a JPEG, PNG or WebP image but GIF"):
        preprocess(path)


def test_the_size_is_that_of_evaluation_or_of_training_or_as_asked(make_run: MakeRun):
    run_dir = make_run("evaluate.size_px=24")
    assert load_encoder(run_dir).facts.size_px == 24
    assert load_encoder(run_dir, size_px=32).preprocess(PIXELS).shape == (3, 32, 32)
    unlabeled = make_run("evaluate.train=null", "evaluate.test=null", "evaluate.size_px=224", name="unlabeled")
    assert load_encoder(unlabeled).facts.size_px == 16


def test_a_file_gives_the_same_encoder_and_facts_back(make_run: MakeRun, tmp_path: Path):
    encoder = load_encoder(make_run())
    path = tmp_path / "model.safetensors"
    path.write_bytes(encoder_bytes(encoder))
    again = load_encoder(path)
    assert again.facts == encoder.facts
    assert again.head is None
    images = encoder.preprocess(PIXELS)[None]
    assert torch.equal(again(images), encoder(images))
    assert load_encoder(path, size_px=20).preprocess(PIXELS).shape == (3, 20, 20)


def test_a_head_travels_with_its_encoder(make_run: MakeRun):
    encoder = load_encoder(make_run())
    encoder.head = torch.nn.Linear(64, 3)
    again = encoder_from_bytes(encoder_bytes(encoder, "fc"))
    assert again.head is not None
    assert torch.equal(again.head.weight, encoder.head.weight)
    assert torch.equal(again.head.bias, encoder.head.bias)
    assert again.facts.weights_sha256 == encoder.facts.weights_sha256


def test_weights_have_a_digest_that_changes_with_any_value(make_run: MakeRun):
    backbone = load_encoder(make_run()).backbone
    before = weights_sha256(backbone)
    assert before == weights_sha256(backbone.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        next(backbone.parameters())[0, 0, 0, 0] += 1e-6
    assert weights_sha256(backbone) != before


def test_a_damaged_file_is_refused(make_run: MakeRun, tmp_path: Path):
    content = bytearray(encoder_bytes(load_encoder(make_run())))
    content[-3] ^= 1
    with pytest.raises(UsageError, match=r"model\.safetensors is damaged: the sha256"):
        encoder_from_bytes(bytes(content), "model.safetensors")
    with pytest.raises(UsageError, match="damaged"):
        encoder_from_bytes(bytes(content[:-100]), "model.safetensors")
    with pytest.raises(UsageError, match="not a safetensors file"):
        encoder_from_bytes(b"something else", "x")


def test_a_path_without_an_encoder_is_named_and_the_message_says_what_to_give(make_run: MakeRun, tmp_path: Path):
    run_dir = make_run()
    with pytest.raises(UsageError, match="does not exist; give a run directory, a checkpoint, an export"):
        load_encoder(tmp_path / "nothing")
    with pytest.raises(UsageError, match="give the checkpoint's folder"):
        load_encoder(f"{find_checkpoint(run_dir).path}/model.safetensors")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    for path in (tmp_path / "onnx", tmp_path / "onnx" / "model.onnx"):
        with pytest.raises(UsageError, match="is ONNX, which onnxruntime runs"):
            load_encoder(path)
    with pytest.raises(UsageError, match="not a run directory"):
        load_encoder(tmp_path)


def test_a_file_of_weights_needs_the_name_of_its_network(tmp_path: Path):
    network, num_features = build_backbone(BackboneConfig(name="resnet18", stem="cifar"))
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({f"module.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    encoder = load_encoder(path, backbone="{name: resnet18, stem: cifar}", size_px=32)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(encoder(images), network.eval()(images))
    assert (encoder.num_features, encoder.facts.size_px, encoder.facts.experiment) == (num_features, 32, "")
    with pytest.raises(UsageError, match=r"Name it \(--backbone"):
        load_encoder(path)
    with pytest.raises(UsageError, match="does not fit the encoder"):
        load_encoder(path, backbone="resnet18")
    with pytest.raises(UsageError, match="is not a network: colour"):
        load_encoder(path, backbone="{colour: red}")


def test_published_weights_come_with_their_network_size_and_colors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As torchvision keeps them once it has fetched them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = "shufflenet_v2_x0_5"
    model = torchvision.models.get_model(name, weights=None)
    kept = tmp_path / "hub" / "checkpoints" / Path(torchvision.models.get_model_weights(name)["DEFAULT"].url).name
    kept.parent.mkdir(parents=True)
    torch.save(model.state_dict(), kept)
    encoder = load_encoder(f"torchvision:{name}")
    images = torch.rand(2, 3, 64, 64)
    assert torch.allclose(model.eval().get_submodule("fc")(encoder(images)), model(images), atol=1e-5)
    assert (encoder.facts.size_px, encoder.facts.pixel_mean) == (224, (0.485, 0.456, 0.406))
    with pytest.raises(UsageError, match="says which network it is for"):
        load_encoder(f"torchvision:{name}", backbone="resnet18")
