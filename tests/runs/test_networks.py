"""The networks of a run that can be evaluated and exported: the student, the teacher, and layers of their projectors."""

from pathlib import Path
from typing import get_args

import pytest
import safetensors.torch
import torch

import ray_sassl
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.seen import SeenIds
from ray_sassl.experiments import load_experiment
from ray_sassl.exporting.export import export_encoder
from ray_sassl.methods import Network
from ray_sassl.nn.method import Method
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import build_method, load_network
from ray_sassl.train.checkpoint import write_checkpoint

SMALL = ("method.projector_hidden_size=12", "method.embedding_size=8")
FORMS = {
    "moco": ("moco_cifar10_cpu", "method.queue_size=16", "method.bn=split"),
    "moco_v3": ("moco_v3_cifar10_cpu", "method.predictor_hidden_size=12"),
    "byol": ("byol_cifar10_cpu", "method.predictor_hidden_size=12"),
    "dino": ("dino_cifar10_cpu", "method.num_outputs=16"),
}


def _run(folder: Path, name: str = "moco") -> tuple[str, Method]:
    """A run with one checkpoint whose teacher differs from its student."""
    experiment, *changes = FORMS[name]
    config = apply_overrides(load_experiment(experiment), [*SMALL, *changes, "evaluate.size_px=16"])
    method = build_method(config)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    write_checkpoint(str(folder / name), 3, method.state_dict(), {}, SeenIds(1), to_yaml(config), keep=1)
    return str(folder / name), method.eval()


@pytest.mark.parametrize("name", FORMS)
def test_student_and_teacher_give_the_features_and_embeddings_of_the_method(tmp_path, name):
    run_dir, method = _run(tmp_path, name)
    images = torch.rand(2, 3, 16, 16)
    found = []
    for network in get_args(Network):
        pair = method.student() if network == "student" else method.teacher()
        assert pair is not None
        backbone, projector = pair
        assert projector is not None
        features = backbone(images)
        encoder = ray_sassl.load_encoder(run_dir, network=network)
        torch.testing.assert_close(encoder(images), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ray_sassl.load_encoder(run_dir, network=network, layer="projector")(images), projector(features))
        first = ray_sassl.load_encoder(run_dir, network=network, layer="projector.0")
        assert isinstance(projector, torch.nn.Sequential)
        torch.testing.assert_close(first(images), projector[0](features))
        assert first.num_features == 12
        found.append(encoder.facts)
    student, teacher = found
    assert student.weights_sha256 != teacher.weights_sha256
    assert (student.network, teacher.network) == ("student", "teacher")


def test_a_teacher_is_exported_like_a_student_and_layers_of_the_projector_as_onnx_only(tmp_path):
    run_dir, method = _run(tmp_path)
    teacher = method.teacher()
    assert teacher is not None
    result = export_encoder(run_dir, "safetensors", str(tmp_path / "out"), overrides=[("evaluate.network", "teacher")])
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ray_sassl.load_encoder(result.model)(images), teacher[0](images), rtol=1e-5, atol=1e-5)
    assert "| network | teacher, backbone |" in Path(result.card).read_text()
    assert safetensors.torch.load_file(result.model)["conv1.weight"].equal(teacher[0].get_parameter("conv1.weight"))
    with pytest.raises(UsageError, match="only onnx can hold"):
        export_encoder(run_dir, "safetensors", str(tmp_path / "other"), overrides=[("evaluate.layer", "projector.0")])
    with pytest.raises(UsageError, match="network and layer are for runs and checkpoints"):
        ray_sassl.load_encoder(result.model, network="teacher")


def test_networks_that_a_method_does_not_have_are_refused(tmp_path):
    run_dir, _ = _run(tmp_path)
    with pytest.raises(UsageError, match=r"evaluate\.layer=projector\.9: the projector has the layers 0 Linear, 1 ReLU, 2 Linear"):
        ray_sassl.load_encoder(run_dir, layer="projector.9")
    config = load_experiment("simclr_cifar10_cpu")
    checkpoint = find_checkpoint(run_dir)
    method = build_method(config)
    write_checkpoint(str(tmp_path / "simclr"), 1, method.state_dict(), {}, SeenIds(1), checkpoint.config_yaml, keep=1)
    changed = apply_overrides(config, ["evaluate.network=teacher"])
    with pytest.raises(UsageError, match="this method has no momentum encoder"):
        load_network(find_checkpoint(str(tmp_path / "simclr")), changed)
