"""One run's directory and parts, without Ray."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data.seen import SeenIds
from ray_sassl.evaluation.subject import untrained_backbone
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.files.own import MARKER
from ray_sassl.pipeline import local_batches
from ray_sassl.runs.directory import find_checkpoint, prepare_run_dir, settled, write_summary
from ray_sassl.runs.files import CONFIG, ENVIRONMENT, INDEX, SUMMARY, RunDirectoryError
from ray_sassl.runs.process import build_method, build_stylize_block, load_backbone, train_process, view_source
from ray_sassl.train.checkpoint import latest_checkpoint, write_checkpoint
from ray_sassl.train.checkpoint_folder import BadCheckpointError
from ray_sassl.train.context import LocalContext
from ray_sassl.types import RunResult
from ray_sassl.views.keyed import DrawKey
from tests.flaky_store import s3_options, s3_server

NUM_ROWS = 120


def _write(path: Path, num_rows: int = NUM_ROWS) -> None:
    """A shard of small images of noise."""
    rng = np.random.default_rng(num_rows)
    images = []
    for _ in range(num_rows):
        out = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
        images.append(out.getvalue())
    pq.write_table(pa.table({"image": images, "label": pa.array(np.arange(num_rows) % 3, pa.int32())}), path, row_group_size=40)


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    """A run of two steps."""
    _write(tmp_path / "train.parquet")
    _write(tmp_path / "test.parquet", 102)
    overrides = [
        "name=tiny",
        f"data={{path: {tmp_path}/train.parquet, shuffle_window: 40, block_rows: 20}}",
        f"evaluate.train={{path: {tmp_path}/train.parquet}}",
        f"evaluate.test={{path: {tmp_path}/test.parquet}}",
        "evaluate.size_px=8",
        "views.size_px=8",
        "method={name: simclr, projector_hidden_size: 8, embedding_size: 4}",
        "train={epochs: 0.3, global_batch: 16, log_every: 1}",
        "tracking.tensorboard=false",
    ]
    return apply_overrides(load_experiment("demo_plain"), overrides)


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return str(tmp_path / "run")


def _ignore(rows: object) -> None:
    """The data have no bad rows."""


def _train(config: ExperimentConfig, run_dir: str) -> None:
    index = prepare_run_dir(config, run_dir, resume=False)
    batches = local_batches(view_source(config, run_dir), epochs=1, batch_size=16, on_bad=_ignore)
    train_process(config, run_dir, batches, index.num_rows, LocalContext(), None)


# The run directory


def test_a_new_run_directory_holds_config_environment_and_index(config, run_dir):
    index = prepare_run_dir(config, run_dir, resume=False)
    assert index.num_rows == NUM_ROWS
    assert {path.name for path in Path(run_dir).iterdir()} == {CONFIG, ENVIRONMENT, INDEX, MARKER}
    environment = json.loads((Path(run_dir) / ENVIRONMENT).read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or environment["packages"]["torch"] == torch.__version__
    assert {"python", "platform", "gpus", "command"} <= environment.keys()


def test_a_run_is_not_overwritten(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    write_checkpoint(run_dir, 1, build_method(config).state_dict(), {}, SeenIds(NUM_ROWS), "", keep=1)
    with pytest.raises(RunDirectoryError, match="already contains a run; add --resume to continue it"):
        prepare_run_dir(config, run_dir, resume=False)


def test_what_is_not_there_is_not_resumed(config, run_dir):
    with pytest.raises(RunDirectoryError, match="contains no run to resume"):
        prepare_run_dir(config, run_dir, resume=True)
    assert not Path(run_dir).exists()


def test_a_run_that_has_lost_its_index_is_not_resumed(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    (Path(run_dir) / INDEX).unlink()
    with pytest.raises(RunDirectoryError, match=r"has lost its index\.arrow"):
        prepare_run_dir(config, run_dir, resume=True)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("method.temperature=0.3", "method.temperature"),
        ("method=byol", "method.base_momentum"),
        ("seed=1", "seed"),
        ("optim.base_lr=0.7", "optim.base_lr"),
        ("train.global_batch=32", "train.global_batch"),
        ("views.left.hue=0.2", "views.left.hue"),
        ("data.block_rows=30", "data.block_rows"),
        ("stylize=color_statistics", "stylize.name"),
    ],
)
def test_a_run_is_not_resumed_as_another(config, run_dir, override, named):
    prepare_run_dir(config, run_dir, resume=False)
    with pytest.raises(RunDirectoryError) as error:
        prepare_run_dir(apply_overrides(config, [override]), run_dir, resume=True)
    assert named in str(error.value).partition(";")[0].replace(",", "").split()


def test_a_new_run_crops_fast_and_keeps_to_it(config, run_dir):
    begun = settled(config, run_dir, resume=False)
    assert begun.views.resizing == "fast"
    prepare_run_dir(begun, run_dir, resume=False)
    resumed = settled(config, run_dir, resume=True)
    assert resumed.views.resizing == "fast"
    prepare_run_dir(resumed, run_dir, resume=True)
    with pytest.raises(RunDirectoryError, match=r"another views\.resizing"):
        prepare_run_dir(apply_overrides(config, ["views.resizing=pillow"]), run_dir, resume=True)


def test_a_run_keeps_how_much_it_shuffles_together(config, run_dir, monkeypatch: pytest.MonkeyPatch):
    config = apply_overrides(config, ["data.shuffle_window=null"])
    index = prepare_run_dir(settled(config, run_dir, resume=False), run_dir, resume=False)
    assert index.config.shuffle_gb is not None
    monkeypatch.setattr("ray_sassl.data.plan.memory_bytes", lambda: 1000)  # resumed on a smaller machine
    resumed = prepare_run_dir(settled(config, run_dir, resume=True), run_dir, resume=True)
    assert resumed.config.shuffle_gb == index.config.shuffle_gb
    with pytest.raises(RunDirectoryError, match=r"another data\.shuffle_gb"):
        prepare_run_dir(settled(apply_overrides(config, ["data.shuffle_gb=2"]), run_dir, resume=True), run_dir, resume=True)


def test_a_run_from_before_there_were_pieces_keeps_its_order(config, run_dir):
    prepare_run_dir(apply_overrides(config, ["data.shuffle_window=2048"]), run_dir, resume=False)
    resumed = prepare_run_dir(settled(apply_overrides(config, ["data.shuffle_window=null"]), run_dir, resume=True), run_dir, resume=True)
    assert (resumed.config.shuffle_gb, resumed.config.shuffle_window) == (None, 2048)


def test_an_old_run_without_the_choice_resumes_with_pillows_crops(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    path = Path(run_dir) / CONFIG
    path.write_text(path.read_text().replace("resizing: auto", ""))
    assert "resizing" not in path.read_text()
    for _ in range(2):  # the second time the file says so
        resumed = settled(config, run_dir, resume=True)
        assert resumed.views.resizing == "pillow"
        prepare_run_dir(resumed, run_dir, resume=True)
    with pytest.raises(RunDirectoryError, match=r"another views\.resizing"):
        prepare_run_dir(settled(apply_overrides(config, ["views.resizing=fast"]), run_dir, resume=True), run_dir, resume=True)


def test_what_does_not_change_the_arithmetic_may_change_at_a_resume(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    changed = apply_overrides(
        config,
        [
            *("scaling.num_workers=4", "train.epochs=9", "train.accumulate=2", "train.log_every=5", "stream.layout=pool"),
            *("evaluate.test=null", "data.cache_gb=2", "data.max_bad_fraction=0.5"),
        ],
    )
    assert prepare_run_dir(changed, run_dir, resume=True).config.cache_gb == 2
    assert view_source(changed, run_dir).index.config.cache_gb == 2
    assert "epochs: 9.0" in (Path(run_dir) / CONFIG).read_text()


def test_a_run_whose_data_have_changed_is_not_resumed(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    path = Path(str(config.data.path))
    os.utime(path, (0, 0))
    with pytest.raises(RunDirectoryError, match=r"1 files of the data set have changed(.|\n)*train\.parquet"):
        prepare_run_dir(config, run_dir, resume=True)


def test_a_summary_is_removed_at_a_resume_and_written_at_the_end(config, run_dir):
    prepare_run_dir(config, run_dir, resume=False)
    result = RunResult("interrupted", 3, run_dir, None, {"loss": 1.5}, "stopped by the user", "SIGTERM")
    write_summary(result)
    assert json.loads((Path(run_dir) / SUMMARY).read_text()) == {
        "status": "interrupted",
        "step": 3,
        "run_dir": run_dir,
        "checkpoint": None,
        "metrics": {"loss": 1.5},
        "reason": "stopped by the user",
        "stopped_by": "SIGTERM",
        "speed": None,
    }
    prepare_run_dir(config, run_dir, resume=True)
    assert not (Path(run_dir) / SUMMARY).exists()


def test_a_run_directory_may_be_a_file_uri(config, run_dir):
    _train(config, Path(run_dir).as_uri())
    assert {path.name for path in Path(run_dir).iterdir()} == {CONFIG, ENVIRONMENT, INDEX, MARKER, "metrics.jsonl", "checkpoints"}
    prepare_run_dir(config, Path(run_dir).as_uri(), resume=True)
    assert find_checkpoint(Path(run_dir).as_uri()).step == 2


# Parts of a run


def test_weights_follow_only_from_the_seed(config):
    one, two, other = (build_method(apply_overrides(config, [f"seed={seed}"])).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["backbone.conv1.weight"], other["backbone.conv1.weight"])
    untrained = untrained_backbone(config).state_dict()
    assert all(torch.equal(value, one[f"backbone.{name}"]) for name, value in untrained.items())


def test_the_identity_gives_no_style_augmentation_and_a_stylizer_gives_one(config):
    assert build_stylize_block(config, "cpu", 1) is None
    stylize_block = build_stylize_block(
        apply_overrides(config, ["stylize=color_statistics", "sassl={prob: 1, alpha: [1, 1], beta: [1, 1]}"]), "cpu", 1
    )
    assert stylize_block is not None
    view = np.zeros((2, 4, 4, 3), np.uint8)
    view[1] = 255
    left, right = (stylize_block(view, DrawKey(0, 0, np.arange(2), number)) for number in range(2))
    assert left[0].min() > 250
    assert left[1].max() < 5
    assert right is view


def test_a_trained_encoder_is_found_and_loaded_from_its_run(config, run_dir):
    _train(config, run_dir)
    checkpoint = find_checkpoint(run_dir)
    assert find_checkpoint(checkpoint.path).path == checkpoint.path
    loaded_config, backbone = load_backbone(checkpoint)
    assert loaded_config == config
    assert all(torch.equal(value, checkpoint.backbone[name]) for name, value in backbone.state_dict().items())
    assert checkpoint.seen.count(0) == 32


def test_a_path_without_a_checkpoint_is_refused(tmp_path, config, run_dir):
    with pytest.raises(BadCheckpointError, match="is not a checkpoint, and not a run directory with a valid one"):
        find_checkpoint(str(tmp_path))
    path = write_checkpoint(run_dir, 1, build_method(config).state_dict(), {}, SeenIds(NUM_ROWS), "", keep=1)
    (Path(path) / "config.yaml").write_text("damaged")
    for given in (run_dir, path):
        with pytest.raises(BadCheckpointError):
            find_checkpoint(given)


# Object stores


@pytest.fixture
def bucket() -> Iterator[str]:
    """The URI of a bucket of moto's S3 server on this machine."""
    with s3_server() as address:
        yield f"s3://bucket{s3_options(address)}"


@pytest.mark.slow
def test_a_run_is_kept_and_resumed_on_an_object_store(config, bucket):
    run_dir = storage.join(bucket, "tiny")
    tracked = apply_overrides(config, ["tracking.tensorboard=true", "train.checkpoint_every=1"])
    _train(tracked, run_dir)
    index = prepare_run_dir(tracked, run_dir, resume=True)
    newest = find_checkpoint(run_dir)
    assert newest.step == 2
    storage.write_bytes(storage.join(newest.path, "state.pt"), b"damaged")
    checkpoint = latest_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint.step == 1
    source = view_source(tracked, run_dir)
    batches = local_batches(source, epochs=1, batch_size=16, on_bad=_ignore, seen=checkpoint.seen)
    outcome = train_process(tracked, run_dir, batches, index.num_rows, LocalContext(), checkpoint)
    assert (outcome.status, outcome.step) == ("finished", 2)
    resumed = find_checkpoint(run_dir)
    assert all(torch.equal(value, newest.backbone[name]) for name, value in resumed.backbone.items())
    lines = [json.loads(line) for line in storage.read_text(storage.join(run_dir, "metrics.jsonl")).splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    assert {storage.name_of(entry.path) for entry in storage.list_dir(run_dir)} >= {CONFIG, INDEX, "metrics.jsonl", "tensorboard"}
