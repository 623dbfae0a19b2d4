"""Data sets of the transfer tables, and transfer to them, as a person types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ray_sassl.evaluation.targets import cards
from ray_sassl.process.errors import UsageError
from tests.cli.test_cli import TINY, _data, _run
from tests.evaluation.targets.conftest import Written, dtd


@pytest.fixture
def small_dtd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """DTD's files, small, with a card to fit."""
    folder = tmp_path / "files"
    folder.mkdir()
    written = dtd(folder, monkeypatch)
    monkeypatch.setitem(cards._BY_NAME, "dtd", written.card)
    monkeypatch.setattr("ray_sassl.evaluation.targets.prepare.CARDS", (written.card,))
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    return written


def test_cards_are_listed_and_one_is_printed_in_full():
    listed = _run("data", "cards")
    assert all(card.name in listed and f"{card.num_train:,}" in listed for card in cards.CARDS)
    told = _run("data", "cards", "flowers102")
    assert "mean_per_class" in told
    assert "imagelabels.mat" in told
    with pytest.raises(UsageError, match="did you mean 'flowers102'"):
        _run("data", "cards", "flowers")


def test_files_that_are_there_are_fetched_once_and_transferred_to(small_dtd: Written, tmp_path: Path):
    run_dir = str(tmp_path / "run")
    data = _data(tmp_path)[:1]
    none = ["evaluate.train=null", "evaluate.test=null"]
    _run("pretrain", "moco_cifar10_cpu", *data, *none, *TINY, "train.epochs=0.2", "scaling.num_workers=0", "--run-dir", run_dir)
    assert "6 images in" in _run("data", "fetch", "dtd", "--from", str(small_dtd.folder))
    assert "is in" in _run("data", "fetch", "dtd", "--from", str(small_dtd.folder))
    assert (small_dtd.folder / "dtd" / "dtd" / "images").exists()
    output = _run("evaluate", run_dir, "transfer", "transfer.protocol={name: knn, k: 1}", "--baselines")
    assert "dtd_top1" in output
    assert "2 classes, 4 train, 2 test, chance 50.0%" in output
    record = json.loads((tmp_path / "run" / "evaluation" / "step-00000002" / "transfer.json").read_text())
    assert record["data"] is None
    assert record["details"]["step 2"]["dtd"]["num_train"] == 4
    assert set(record["scores"]) == {"step 2", "untrained encoder", "raw pixels"}
    with pytest.raises(UsageError, match=r"evaluate\.train is not set"):
        _run("evaluate", run_dir, "transfer", "knn")


def test_a_data_set_that_cannot_be_fetched_is_an_error(small_dtd: Written, tmp_path: Path):
    with pytest.raises(UsageError, match=r"data fetch cars --from FOLDER"):
        _run("data", "fetch", "cars")
    with pytest.raises(UsageError, match="--keep-files is for downloads"):
        _run("data", "fetch", "dtd", "--from", str(tmp_path), "--keep-files")
    with pytest.raises(UsageError, match=r"DTD cannot be read from .*The folder should hold: dtd/dtd/images"):
        _run("data", "fetch", "dtd", "--from", str(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_actors_train_and_transfer_as_one_process_does(small_dtd: Written, ray_cluster: None, tmp_path: Path):
    run_dir = str(tmp_path / "run")
    data = _data(tmp_path)
    _run("pretrain", "moco_cifar10_cpu", *data, *TINY, "train.epochs=0.2", "scaling.num_workers=0", "--run-dir", run_dir)
    train, test = (words.partition("=")[2] for words in data[1:])
    target = f"{{name: mine, train: {{path: '{train}'}}, test: {{path: '{test}'}}}}"
    _run("data", "fetch", "dtd", "--from", str(small_dtd.folder))
    words = ["finetune", "transfer", "epochs=1", f"transfer.targets=[dtd, {target}]", "transfer.protocol={name: knn, k: 1}"]
    records = []
    for place in ([], ["--actors", "2", "--actor-cpus", "0.5"]):
        out = tmp_path / f"results-{len(records)}"
        _run("evaluate", run_dir, *words, "--out", str(out), *place)
        records.append([json.loads((out / f"{name}.json").read_text())["scores"]["step 2"] for name in ("finetune", "transfer")])
    here, there = records
    assert here[1] == there[1]
    assert list(there[1]) == ["dtd_top1", "mine_top1", "mean_accuracy"]
    assert there[0]["top1"]["value"] == pytest.approx(here[0]["top1"]["value"], abs=0.02)
