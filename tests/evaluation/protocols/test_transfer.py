"""Transfer through the subject that the command line uses, to data sets that the tests write."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError
from sklearn.metrics import cohen_kappa_score

from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation import Predictions
from ray_sassl.evaluation.protocols import transfer
from ray_sassl.evaluation.subject import EncoderSubject, RawPixels
from ray_sassl.evaluation.targets import cards as cards_module
from ray_sassl.evaluation.targets.cards import card_of
from ray_sassl.experiments import load_experiment
from ray_sassl.process.errors import UsageError

COLORS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]])


def write_split(folder: Path, half: str, num_rows: int, num_classes: int = 3, seed: int = 0, shuffled: bool = False) -> str:
    """Plain images with noise, whose label is their color, or is drawn at random."""
    rng = np.random.default_rng([seed, num_rows])
    labels = np.arange(num_rows) % num_classes
    images = []
    for label in labels:
        out = io.BytesIO()
        pixels = (COLORS[label % 3] + rng.normal(0, 12, (8, 8, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        images.append(out.getvalue())
    (folder / half).mkdir(parents=True, exist_ok=True)
    path = folder / half / "shard-000000.parquet"
    pq.write_table(pa.table({"image": images, "label": rng.permutation(labels) if shuffled else labels}), path)
    return str(path)


def own(folder: Path, name: str = "mine", **sizes) -> dict:
    train, test = (write_split(folder / name, half, num, **sizes) for half, num in (("train", 60), ("test", 45)))
    return {"name": name, "train": {"path": train}, "test": {"path": test}}


@pytest.fixture
def config() -> ExperimentConfig:
    config = load_experiment("demo_plain")
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"size_px": 8, "train": None, "test": None})})


@pytest.fixture
def subject(config) -> EncoderSubject:
    """Raw pixels, without images of a run's own."""
    return EncoderSubject(RawPixels(), config, None)


def small_card(monkeypatch: pytest.MonkeyPatch, name: str, **changes) -> None:
    changes = {"num_classes": 3, "num_train": 60, "num_test": 45} | changes
    monkeypatch.setitem(cards_module._BY_NAME, name, replace(card_of(name), **changes))


def prepared(root: Path, name: str, monkeypatch: pytest.MonkeyPatch, **changes) -> None:
    """As `data fetch` leaves a data set."""
    small_card(monkeypatch, name, **changes)
    own(root, name)
    (root / name / "card.json").write_text("{}")


def test_each_target_has_its_own_figure_and_the_mean_is_over_all(subject, tmp_path, monkeypatch):
    prepared(tmp_path, "flowers102", monkeypatch)
    prepared(tmp_path, "dtd", monkeypatch)
    targets = ["flowers102", "dtd", own(tmp_path), own(tmp_path, "noise", shuffled=True) | {"metric": "mean_per_class"}]
    found = transfer.Config(targets=targets, root=str(tmp_path)).build().evaluate(subject)
    assert list(found.scores) == ["flowers102_mean_per_class", "dtd_top1", "mine_top1", "noise_mean_per_class", "mean_accuracy"]
    assert [found.scores[name].value for name in list(found.scores)[:3]] == [1.0, 1.0, 1.0]
    noise = found.scores["noise_mean_per_class"]
    assert noise.low - 0.05 < 1 / 3 < noise.high + 0.05
    assert found.scores["mean_accuracy"].value == pytest.approx((3 + noise.value) / 4)
    details = found.details["flowers102"]
    assert (details["num_train"], details["num_test"], details["num_classes"], details["bad_images"]) == (60, 45, 3, 0)
    assert details["chance"] == pytest.approx(1 / 3)
    assert "l2" in details
    assert details["license"] == card_of("flowers102").license
    assert "noise_l2" in found.figures
    assert found.predictions is None


def test_without_targets_all_that_were_fetched_are_evaluated(subject, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"there are no data sets in .* to transfer to; fetch some"):
        transfer.Config(root=str(tmp_path)).build().evaluate(subject)
    prepared(tmp_path, "dtd", monkeypatch)
    found = transfer.Config(root=str(tmp_path), protocol="knn").build().evaluate(subject)
    assert list(found.scores) == ["dtd_top1"]
    assert found.predictions is not None


def test_any_protocol_takes_the_place_of_the_probe(subject, tmp_path):
    few = transfer.Config(targets=[own(tmp_path)], protocol={"name": "few_shot", "shots": [1, 5], "num_draws": 4}).build().evaluate(subject)
    assert list(few.scores) == ["mine_1_shot_top1", "mine_5_shot_top1"]
    assert transfer.Config().protocol.model_dump()["l2"] == "grid"
    with pytest.raises(ValidationError, match="transfer brings its own images"):
        transfer.Config(protocol="transfer")


def test_steps_of_a_scale_also_have_a_kappa(subject, tmp_path, monkeypatch):
    prepared(tmp_path, "diabetic_retinopathy", monkeypatch)
    found = transfer.Config(targets=["diabetic_retinopathy"], root=str(tmp_path)).build().evaluate(subject)
    assert list(found.scores) == ["diabetic_retinopathy_top1", "diabetic_retinopathy_quadratic_kappa"]
    assert found.scores["diabetic_retinopathy_quadratic_kappa"].value == 1.0


def test_kappa_equals_scikit_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 400)
    predicted = np.where(rng.random(400) < 0.5, labels, rng.integers(0, 5, 400))
    score = transfer.quadratic_kappa(Predictions(np.arange(400), labels, predicted), 5)
    assert score.value == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"), abs=1e-12)
    assert score.low < score.value < score.high


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 61}, r"target dtd: DTD has 61 train images .*, and 60 were found"),
        ({"num_classes": 2}, r"target dtd: DTD has the labels 0 to 1, and train has 2"),
        ({"num_classes": 4}, r"target dtd: DTD: no train images of class 3"),
    ],
)
def test_a_data_set_that_is_not_what_its_card_says_is_refused_before_any_work(subject, tmp_path, monkeypatch, changes, message):
    prepared(tmp_path, "dtd", monkeypatch, **changes)
    monkeypatch.setattr(EncoderSubject, "evaluate", lambda *args: pytest.fail("work was begun"))
    with pytest.raises(UsageError, match=message):
        transfer.Config(targets=[own(tmp_path), "dtd"], root=str(tmp_path)).build().evaluate(subject)


def test_a_card_of_ones_own_files_is_held_against_them_too(subject, tmp_path, monkeypatch):
    small_card(monkeypatch, "cifar10", num_test=10_000)
    with pytest.raises(UsageError, match=r"target cifar10: CIFAR-10 has 10,000 test images .* and 45 were found"):
        transfer.Config(targets=[own(tmp_path, "cifar10")]).build().evaluate(subject)


def test_a_class_without_train_images_is_named_with_its_target(subject, tmp_path):
    target = own(tmp_path)
    target["test"] = {"path": write_split(tmp_path / "wider", "test", 40, num_classes=5)}
    with pytest.raises(UsageError, match="target mine: class 3, 4 has test images and no train images"):
        transfer.Config(targets=[target]).build().evaluate(subject)


def test_a_target_that_is_not_here_says_how_to_get_it(subject, tmp_path):
    for name, message in (("dtd", "Get it with: ray-sassl data fetch dtd"), ("cars", "the authors' address is gone")):
        with pytest.raises(UsageError, match=message):
            transfer.Config(targets=[name], root=str(tmp_path)).build().evaluate(subject)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["food11"], "no card 'food11' .did you mean 'food101'"),
        (["dtd", "dtd"], "dtd is named twice"),
        ([{"name": "mine", "train": {"path": "x"}}], "needs both train and test"),
        ([{"name": "a/b", "train": {"path": "x"}, "test": {"path": "y"}}], "pattern"),
    ],
)
def test_targets_are_checked_when_the_config_is_made(targets, message):
    with pytest.raises(ValidationError, match=message):
        transfer.Config(targets=targets)


@pytest.mark.slow
def test_real_images_of_two_kinds_are_classified_better_than_by_chance(config, shared_dir):
    data = shared_dir / "data"
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"size_px": 16})})
    folders = {"clothing": data / "transfer" / "clothing"}
    targets = [
        {"name": name, "train": {"path": str(folder / "train-*.parquet")}, "test": {"path": str(folder / "test-*.parquet")}}
        for name, folder in folders.items()
    ]
    found = transfer.Config(targets=targets, protocol={"name": "knn", "k": 10}).build().evaluate(EncoderSubject(RawPixels(), config, None))
    assert found.scores["clothing_top1"].low > found.details["clothing"]["chance"]
    assert (found.details["clothing"]["num_train"], found.details["clothing"]["num_test"]) == (1000, 240)
