"""What scores during a run are measured on: validation images, never test images."""

from __future__ import annotations

import io
import json
import logging
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import OverrideError, apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.data import DataConfig
from ray_sassl.evaluation import FixedFeatures, datasets, online
from ray_sassl.evaluation.datasets import LabeledImages, selection_images
from ray_sassl.evaluation.images import chosen_rows
from ray_sassl.evaluation.online import OnlineScores
from ray_sassl.evaluation.subject import RawPixels
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError
from ray_sassl.train.context import LocalContext
from ray_sassl.train.loop import EvaluationStoppedError
from tests.together import run_together

COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [128, 128, 128]])
NUM = 120


def _write(path: Path, seed: int, *, shuffled: bool = False, noisy: bool = False, num: int = NUM) -> None:
    """Plain images whose label is their color, or has nothing to do with it; or images of pure noise."""
    rng = np.random.default_rng(seed)
    colors = np.arange(num) % 4
    labels = rng.permutation(colors) if shuffled else colors
    encoded = []
    for color in colors:
        pixels = rng.integers(0, 256, (8, 8, 3)) if noisy else COLORS[color] + rng.normal(0, 8, (8, 8, 3))
        out = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
        encoded.append(out.getvalue())
    pq.write_table(pa.table({"image": encoded, "label": pa.array(labels, pa.int32())}), path, row_group_size=16)


def _scores(tmp_path: Path, *overrides: str, context: LocalContext | None = None) -> OnlineScores:
    base = [f"evaluate.train={{path: {tmp_path}/train.parquet}}", "evaluate.size_px=8", "evaluate.online_rows=1000"]
    return OnlineScores(apply_overrides(load_experiment("demo_plain"), [*base, *overrides]), context or LocalContext())


def _selected(scores: OnlineScores) -> tuple[LabeledImages, ...]:
    found = scores._selection
    assert found is not None
    return found


def test_labels_that_only_the_test_set_could_teach_are_not_found(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0)
    _write(tmp_path / "validation.parquet", 1, shuffled=True)
    _write(tmp_path / "test.parquet", 2)
    own = [f"evaluate.{split}={{path: {tmp_path}/{split}.parquet}}" for split in ("validation", "test")]
    scores = _scores(tmp_path, *own, "evaluate.online=both")
    assert all(value < 0.5 for value in scores.validation(RawPixels()).values())
    assert scores.test(RawPixels()) == {"test_knn_top1": 1.0, "test_linear_top1": 1.0}


def test_validation_images_are_a_share_of_every_class_and_no_neighbors_of_themselves(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, shuffled=True, noisy=True)
    scores = _scores(tmp_path, "evaluate.validation=0.25", f"evaluate.test={{path: {tmp_path}/nowhere.parquet}}")
    train, validation = _selected(scores)
    assert train.wanted is not None
    assert validation.wanted is not None
    assert not (train.wanted & validation.wanted).any()
    assert (train.wanted | validation.wanted).all()
    assert np.bincount(validation.labels).tolist() == [8, 8, 8, 8]  # a quarter of thirty, rounded
    assert sum(len(labels) for _, labels in validation) == 32
    assert sum(len(labels) for _, labels in train) == NUM - 32
    # A kNN that had the validation images among its neighbors would know each by its pixels.
    assert scores.validation(RawPixels())["knn_top1"] < 0.6


def test_the_share_is_the_same_for_every_seed_of_a_run_and_another_for_another_validation_seed(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0)
    masks = [_selected(_scores(tmp_path, *words))[1].wanted for words in ([], ["seed=5"], ["evaluate.validation_seed=1"])]
    first, second, other = (mask for mask in masks if mask is not None)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("keep_gb", [1.0, 2e-4, 0.0])
def test_the_second_scores_read_nothing_as_long_as_the_images_fit_decoded_or_encoded(tmp_path: Path, monkeypatch, keep_gb: float):
    _write(tmp_path / "train.parquet", 0)
    reads: list[int] = []
    monkeypatch.setattr(datasets, "chosen_rows", lambda index, group, *rest: (reads.append(group), chosen_rows(index, group, *rest))[1])
    scores = _scores(tmp_path, f"evaluate.keep_gb={keep_gb}", "evaluate.size_px=32")
    first = scores.validation(RawPixels())
    num_reads = len(reads)
    assert num_reads > NUM // 16
    assert scores.validation(RawPixels()) == first
    assert len(reads) == (2 * num_reads if keep_gb == 0 else num_reads)
    assert [images._decoded is None for images in _selected(scores)] == [keep_gb < 1, keep_gb == 0]


def test_a_limit_leaves_images_of_all_of_the_set(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, num=1600)
    config = _scores(tmp_path, "evaluate.online_rows=100", "evaluate.validation=0.5")._evaluate
    for images in selection_images(config):
        labels = np.concatenate([labels for _, labels in images])
        assert 60 <= len(labels) <= 100
        assert len(np.unique(labels)) == 4


def test_a_run_goes_to_its_end_without_its_test_images_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    _write(tmp_path / "train.parquet", 0)
    scores = _scores(tmp_path, f"evaluate.test={{path: {tmp_path}/nowhere.parquet}}")
    assert scores.validation(RawPixels())["knn_top1"] == 1.0
    with caplog.at_level(logging.WARNING):
        assert scores.test(RawPixels()) == {}
    assert "nowhere.parquet does not exist" in caplog.text
    for none in ("evaluate.test=null", "evaluate.final_test=false"):
        assert _scores(tmp_path, none).test(RawPixels()) == {}


def test_a_set_of_one_image_a_class_cannot_be_split(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, num=4)
    with pytest.raises(UsageError, match=r"no class of two images, .*evaluate\.validation='\{path: FOLDER\}'"):
        _scores(tmp_path)._selection  # noqa: B018


def test_validation_is_a_share_a_path_or_a_data_set(tmp_path: Path):
    config = apply_overrides(load_experiment("demo_plain"), ["evaluate.validation=0.2"])
    assert (config.evaluate.validation, config.evaluate.own_validation) == (0.2, None)
    for value in ("labeled/val", "{path: labeled/val}"):
        config = apply_overrides(config, [f"evaluate.validation={value}"])
        assert config.evaluate.own_validation == DataConfig(path="labeled/val")
        assert from_yaml(to_yaml(config)) == config
    assert apply_overrides(config, ["evaluate.validation.path=other"]).evaluate.own_validation == DataConfig(path="other")
    with pytest.raises(OverrideError, match=r"a share of evaluate\.train between 0 and 1, or a path; not 1\.5"):
        apply_overrides(config, ["evaluate.validation=1.5"])
    with pytest.raises(OverrideError, match=r"no effect without evaluate\.train"):
        apply_overrides(config, ["evaluate.train=null"])


def test_a_config_from_before_there_were_validation_images_is_read(tmp_path: Path):
    config = load_experiment("demo_plain")
    lines = [line for line in to_yaml(config).splitlines() if not line.strip().startswith(("validation", "final_test"))]
    assert len(lines) == len(to_yaml(config).splitlines()) - 3
    old = from_yaml("\n".join(lines))
    assert isinstance(old, ExperimentConfig)
    assert old.evaluate.validation == 0.1


def test_a_rank_that_can_write_no_file_keeps_the_index_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _write(tmp_path / "train.parquet", 0)
    index = _selected(_scores(tmp_path))[0].index
    mapped = online._mapped(index)
    assert (mapped is not index, mapped.num_rows) == (True, NUM)
    monkeypatch.setattr(online, "TemporaryDirectory", _gone)
    assert online._mapped(index) is index


class _Unreadable(Exception):
    """Pickle writes it and cannot read it again, like the errors of some clients of object stores."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def test_an_error_that_cannot_be_sent_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*args: Any) -> Any:
        raise _Unreadable("images", "access denied")

    _write(tmp_path / "train.parquet", 0)
    scores = _scores(tmp_path)
    monkeypatch.setattr(online, "to_rank_zero", lambda mine, context: [pickle.loads(pickle.dumps(mine))])
    monkeypatch.setattr(datasets, "each_group", denied)
    with pytest.raises(_Unreadable, match="access denied"):
        scores.validation(RawPixels())


class _Shifted(nn.Module):
    """Features that depend on a buffer, as on a batch norm's running mean, and on the batch's size, if only in the last digit."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3 * 32 * 32, 16)
        self.register_buffer("shift", torch.full((3 * 32 * 32,), shift))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear((x.flatten(1) - self.shift).cos())  # pyright: ignore[reportOperatorIssue]


def _told(folder: Path, context: LocalContext) -> dict[str, Any]:
    """What one rank finds: its scores and the features that they are of, what it reads, and how errors and stops end."""
    torch.set_num_threads(1)
    subjects: list[FixedFeatures] = []
    reads: list[int] = []
    online.FixedFeatures = lambda *sets: (subjects.append(FixedFeatures(*sets)), subjects[-1])[1]  # type: ignore[assignment]
    datasets.chosen_rows = lambda rows, *rest: (reads.append(len(rows)), chosen_rows(rows, *rest))[1]
    network = _Shifted(0.5 if context.rank == 0 else 3.0)
    found: dict[str, Any] = {}
    words = ["evaluate.online=both", "evaluate.validation=0.4", "evaluate.size_px=32"]
    for name, keep_gb in (("decoded", 1), ("encoded", 1e-3)):
        scores = _scores(folder, *words, f"evaluate.keep_gb={keep_gb}", context=context)
        found[name], found[f"{name} reads"] = scores.validation(network), len(reads)
        found[f"{name} again"], found[f"{name} reads more"] = scores.validation(network), len(reads) - found[f"{name} reads"]
        found["test"] = scores.test(network)
        reads.clear()
    features = subjects[0] if subjects else None
    found["features"] = [s.features.tobytes().hex() for s in (features.features("train"), features.features("test"))] if features else None
    found["shift"] = network.shift.unique().tolist()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    calls = iter(range(100))

    def stop() -> None:
        if context.rank == context.world_size - 1 and next(calls) == 1:
            raise EvaluationStoppedError

    try:
        scores.validation(network, stop)
        found["stopped"] = False
    except EvaluationStoppedError:
        found["stopped"] = True
    if context.rank == 1:
        datasets.each_group = _gone
    found["unread"] = _scores(folder, *words, context=context).validation(network)
    missing = _scores(folder, f"evaluate.train.path={folder}/nowhere.parquet", context=context)
    try:
        found["missing"] = missing.validation(network)
    except UsageError as error:
        found["missing"] = str(error)
    return found


def _gone(*args: Any) -> Any:
    raise OSError("the disk is gone")


@pytest.mark.slow
def test_two_ranks_share_the_images_and_score_to_the_bit_as_one(tmp_path: Path):
    _write(tmp_path / "train.parquet", 0, shuffled=True, num=900)
    _write(tmp_path / "test.parquet", 1, num=NUM)
    commands = [[sys.executable, "-m", __name__, str(tmp_path), str(rank)] for rank in (0, 1, None)]
    told = run_together(commands, 240)
    first, second, alone = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1, None))
    for name in ("decoded", "decoded again", "encoded", "encoded again", "test", "unread", "features"):
        assert first[name] == alone[name], name
        assert not second[name], name
    assert set(alone["decoded"]) == {"knn_top1", "linear_top1"}
    for name in ("decoded", "encoded"):
        assert abs(first[f"{name} reads"] - second[f"{name} reads"]) <= 2
        assert first[f"{name} reads"] + second[f"{name} reads"] == alone[f"{name} reads"]
        assert (first[f"{name} reads more"], second[f"{name} reads more"]) == (0, 0)
    assert (first["shift"], second["shift"]) == ([0.5], [3.0])  # each has its own again
    assert first["stopped"]
    assert second["stopped"]
    assert "Worker 1 cannot compute its share of the scores, so the first worker does. the disk is gone" in told[0]
    assert "nowhere.parquet does not exist" in first["missing"]
    assert second["missing"] == {}


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), sys.argv[2]
    if number != "None":
        dist.init_process_group("gloo", init_method=f"file://{place / 'store'}", rank=int(number), world_size=2)
    logging.basicConfig()
    said = _told(place, LocalContext() if number == "None" else LocalContext(int(number), 2))
    (place / f"{number}.json").write_text(json.dumps(said))
