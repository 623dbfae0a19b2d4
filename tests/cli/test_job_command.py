"""What a command of ours would do as a job is found without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.api.jobs import default_job_name
from ray_sassl.cli.job_command import read_command
from ray_sassl.config.files import to_yaml
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError


def test_a_pretraining_continues_one_that_has_begun():
    found = read_command(["pretrain", "demo", "train.epochs=3", "--run-dir", "s3://bucket/runs/first"])
    assert found.words == ["pretrain", "demo", "train.epochs=3", "--run-dir", "s3://bucket/runs/first", "--resume-if-begun"]
    assert found.target == "s3://bucket/runs/first"
    assert found.config is not None
    assert found.config.train.epochs == 3
    assert "data.path" in found.data
    assert read_command(["pretrain", "demo", "--run-dir", "/shared/x", "--resume"]).words[-1] == "--resume"


def test_the_run_directory_may_be_written_like_a_setting():
    found = read_command(["pretrain", "demo", "run_dir=s3://bucket/runs/first"])
    assert found.target == "s3://bucket/runs/first"


def test_a_config_of_ones_own_is_a_file_that_must_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.yaml").write_text(to_yaml(load_experiment("demo")))
    monkeypatch.chdir(tmp_path)
    assert read_command(["pretrain", "mine.yaml", "--run-dir", "/shared/x"]).files == {"the experiment": "mine.yaml"}


def test_a_search_is_known_by_its_study_directory():
    assert read_command(["search", "style_strength", "--grace", "2", "--study-dir", "s3://bucket/studies/mine"]).config is not None
    found = read_command(["search", "style_strength", "train.epochs=2", "--trials", "3", "--study-dir", "s3://bucket/studies/mine"])
    assert found.words[-1] == "--resume-if-begun"
    assert found.files == {}, "the space names its experiment"
    assert found.target == "s3://bucket/studies/mine"
    assert found.config is not None
    assert found.config.train.epochs == 2
    with pytest.raises(UsageError, match="give --study-dir"):
        read_command(["search", "style_strength"])


def test_a_stylized_copy_and_a_conversion_are_known_by_their_targets():
    styled = read_command(
        ["stylize", "dataset", "s3://b/in", "s3://b/out", "stylize=color_statistics", "--actors", "4", "--actor-gpus", "0.5"]
    )
    assert (styled.target, styled.actors) == ("s3://b/out", {"CPU": 4.0, "GPU": 2.0})
    assert styled.data["the source"].path == "s3://b/in"
    banked = read_command(
        ["stylize", "dataset", "s3://b/in", "s3://b/out", "stylize=color_statistics", "--bank", "s3://b/bank.safetensors"]
    )
    assert banked.files["the style bank"] == "s3://b/bank.safetensors"
    converted = read_command(["data", "convert", "/shared/in", "/shared/out", "--format", "parquet", "--from", "folder"])
    assert (converted.target, converted.data["the source"].format) == ("/shared/out", "folder")


def test_an_evaluation_of_a_run_that_is_elsewhere_is_noted():
    found = read_command(["evaluate", "/shared/runs/none", "knn", "k=20"])
    assert found.target == "/shared/runs/none"
    assert found.notes == ["/shared/runs/none is not on this machine, so only the cluster can find out whether it has a run"]
    with pytest.raises(UsageError, match="did you mean 'knn'"):
        read_command(["evaluate", "/shared/runs/none", "kn"])


def test_an_evaluation_by_every_protocol_reads_the_boxes_that_are_named():
    found = read_command(["evaluate", "/shared/runs/none", "all", "knn.k=20", "detect.data=s3://b/VOCdevkit", "detect.steps=500"])
    assert found.files == {"detect.data": "s3://b/VOCdevkit"}
    assert read_command(["evaluate", "/shared/runs/none", "all"]).files == {}
    for words, reason in (
        (["all", "knn"], "leave out knn"),
        (["knn", "detect.steps=5"], "belongs to"),
        (["all", "detect.step=5"], "steps"),
    ):
        with pytest.raises(UsageError, match=reason):
            read_command(["evaluate", "/shared/runs/none", *words])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "give the command after `--`"),
        (["views", "demo"], "'views' does not run as a job"),
        (["pretrain"], "Missing argument"),
        (["pretrain", "demo", "--run-dir"], "requires an argument"),
        (["pretrain", "demo", "--help"], "leave --help out"),
        (["pretrian", "demo"], "No such command"),
        (["data", "convert", "a", "/b", "--format", "zip"], "zip"),
        (["pretrain", "demo", "train.global_batch=7", "scaling.num_workers=2", "--run-dir", "/x"], "does not divide"),
    ],
)
def test_a_wrong_command_is_refused_with_the_reason(words: list[str], reason: str):
    with pytest.raises(UsageError, match=reason):
        read_command(words)


def test_a_job_is_named_after_its_command_and_target():
    assert default_job_name("pretrain", "s3://bucket/runs/first/") == "pretrain-first"
    assert default_job_name("stylize dataset", "/shared/my copy") == "stylize-dataset-my-copy"


def test_an_ablation_runs_as_a_job_that_goes_on_by_itself():
    words = ["ablation", "sassl_view", "data.path=s3://b/train", "--size", "imagenet", "--study-dir", "/shared/table"]
    command = read_command(words)
    assert (command.verb, command.words, command.target) == ("ablation", words, "/shared/table")
    assert command.config is not None
    assert command.config.name == "moco_imagenet_sassl"
    assert command.data["data.path"].path == "s3://b/train"
    with pytest.raises(UsageError, match="give --study-dir"):
        read_command(["ablation", "sassl_view"])


def test_weights_that_only_the_head_can_have_are_noted():
    paths = ["data.path=s3://b/x", "evaluate.train=null", "evaluate.test=null", "--run-dir", "s3://b/runs/x"]
    (note,) = read_command(["pretrain", "simclr_imagenet_sassl", *paths]).notes
    assert "an image built with WEIGHTS=magenta has them" in note
    copied = read_command(["pretrain", "simclr_imagenet_sassl", "stylize.weights=s3://b/magenta.safetensors", *paths])
    assert (copied.notes, copied.files["stylize.weights"]) == ([], "s3://b/magenta.safetensors")
    assert read_command(["pretrain", "simclr_imagenet", *paths]).notes == []
    assert read_command(["stylize", "dataset", "s3://b/in", "s3://b/out", "stylize=magenta"]).notes == [note]
