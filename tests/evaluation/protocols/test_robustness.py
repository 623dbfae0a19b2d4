"""Robustness of a small subject, and what its scores stand for."""

import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from ray_sassl.data import DataConfig
from ray_sassl.data.reading import all_labels, build_index
from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.evaluation.changes import Stylized, Textures
from ray_sassl.evaluation.features import features_of
from ray_sassl.evaluation.intervals import mean_score
from ray_sassl.evaluation.logistic import fit_lbfgs
from ray_sassl.evaluation.protocols import robustness
from ray_sassl.evaluation.rows import moments
from ray_sassl.evaluation.targets.variants import ALEXNET_ERRORS, Variant, classes_in
from ray_sassl.process.errors import UsageError
from ray_sassl.style.stylizers import all_published_weights
from ray_sassl.style.stylizers.color_statistics import Config as ColorStatistics
from ray_sassl.style.weights import weights_path
from tests.evaluation.conftest import CLASSES, SmallSubject

OPTIONS = {"corruptions": ("gaussian_noise", "contrast"), "severities": (1, 3, 5), "num_shown": 3, "stylize": ColorStatistics()}


@pytest.fixture(scope="module")
def result():
    return robustness.Config(**OPTIONS).build().evaluate(SmallSubject())


def test_scores_and_pictures_are_there(result):
    assert list(result.scores) == [
        "clean_top1",
        "stylized_top1",
        "corrupted_top1",
        "gaussian_noise_top1",
        "contrast_top1",
        "conflict_shape_top1",
        "conflict_texture_top1",
        "shape_share",
    ]
    assert all(0 <= score.low <= score.value <= score.high <= 1 for score in result.scores.values())
    assert set(result.figures) == {"images", "severity"}
    assert all(np.asarray(Image.open(io.BytesIO(content))).std() > 5 for content in result.figures.values())


def test_the_clean_score_is_that_of_the_linear_probe(result):
    subject = SmallSubject()
    train, test = subject.features("train"), subject.features("test")
    mean, deviation = moments(train.features)
    weight, bias, _ = fit_lbfgs((train.features - mean) / deviation, train.labels, 1e-4, 500)
    predicted = ((test.features - mean) / deviation @ weight.T + bias).argmax(1)
    assert result.scores["clean_top1"].value == np.mean(predicted == test.labels)
    assert result.scores["clean_top1"].value > 0.9


def test_the_mean_is_that_over_corruptions_and_severities(result):
    table = np.array(list(result.details["top1_by_severity"].values()))
    assert table.shape == (2, 3)
    assert result.scores["corrupted_top1"].value == pytest.approx(table.mean())
    assert result.scores["contrast_top1"].value == pytest.approx(table[1].mean())


def test_a_run_repeats_and_reads_the_test_images_once(result):
    subject = SmallSubject()
    again = robustness.Config(**OPTIONS).build().evaluate(subject)
    assert again.scores == result.scores
    assert again.figures["images"] == result.figures["images"]
    assert subject.num_passes == 1


def test_predictions_are_those_for_the_stylized_copies(result):
    assert np.mean(result.predictions.predicted == result.predictions.labels) == result.scores["stylized_top1"].value
    assert result.predictions.sample_id.tolist() == (3 * np.arange(60) + 5).tolist()


def test_an_encoder_that_sees_only_color_decides_by_texture():
    class Color(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    class ColorSubject(SmallSubject):
        def encoder(self):
            return Color(), 3

    subject = ColorSubject(300, 90)
    subject.network = Color()
    scores = robustness.Config(corruptions=(), stylize=ColorStatistics()).build().evaluate(subject).scores
    assert scores["clean_top1"].value > 0.9
    assert scores["shape_share"].value < 0.1  # the stylized image has the mean color of its style
    assert "corrupted_top1" not in scores


def test_shape_and_texture_are_counted_by_their_classes():
    textures = Textures(np.zeros((2, 9), np.float32), np.array([0, 1]), "two")
    conflict = Stylized(ColorStatistics(), textures, 0, other_class=True)
    labels = np.array([0, 0, 1, 1, 2])
    predicted = np.array([0, 1, 0, 2, 2])
    texture_labels = textures.labels[conflict.styles(labels, np.arange(5))]
    assert texture_labels[:4].tolist() == [1, 1, 0, 0]
    scores = robustness._cue_scores(predicted, labels, texture_labels)
    assert scores["conflict_shape_top1"].value == pytest.approx(2 / 5)  # the first and the last
    assert scores["conflict_texture_top1"].value == pytest.approx(2 / 5)  # the second and the third
    assert scores["shape_share"].value == 0.5


def test_with_shuffled_labels_all_accuracies_are_chance():
    subject = SmallSubject(300, 900, shuffled=True)
    scores = robustness.Config(**OPTIONS).build().evaluate(subject).scores
    for name in ("clean_top1", "stylized_top1", "corrupted_top1"):
        assert scores[name].value == pytest.approx(1 / 3, abs=0.06)


def test_an_encoder_is_judged_by_a_stylizer_that_its_training_did_not_use(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    assert robustness.unused_stylizer(None).name == "swift"
    assert robustness.unused_stylizer("swift").name == "color_statistics"
    path = weights_path(all_published_weights()["magenta"])
    path.parent.mkdir(parents=True)
    path.touch()
    assert {name: robustness.unused_stylizer(name).name for name in (None, "swift", "magenta")} == {
        None: "magenta",
        "swift": "magenta",
        "magenta": "swift",
    }


def test_a_missing_published_stylizer_is_told_aloud(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    found = robustness.Config(corruptions=()).build().evaluate(SmallSubject())
    assert found.details["stylizer"] == "swift"
    assert found.notes["stylized_top1"] == "stylized by swift; magenta is not on this machine"
    (record,) = caplog.records
    assert "Robustness is judged by swift, since the weights of magenta are not on this machine" in record.getMessage()
    assert "robustness.stylize=swift" in record.getMessage()


def test_scores_say_which_stylizer_made_them_and_whether_that_is_circular(result):
    assert (result.details["stylizer"], result.details["circular"]) == ("color_statistics", False)
    assert result.notes["stylized_top1"] == "stylized by color_statistics"
    assert result.details["styles"] == "up to 8 test images of each class"
    subject = SmallSubject()
    subject.trained_with = "color_statistics"
    circular = robustness.Config(corruptions=(), stylize=ColorStatistics()).build().evaluate(subject)
    assert circular.details["circular"]
    assert circular.notes["shape_share"].endswith("circular")


class PublishedSets(SmallSubject):
    """Also has other images: as many files as each class folder has, all of the noisy images of its own test set's classes."""

    def outputs_on(self, network: torch.nn.Module, data: DataConfig) -> tuple[LabeledFeatures, tuple[str, ...]]:
        index = build_index(data)
        labels = all_labels(index)
        number = [self.class_names.index(name) for name in index.class_names]
        images, own = self.data["test"]
        chosen = np.array([np.flatnonzero(own == number[label])[0] for label in labels])
        part = self._features(network, "test", images[: len(chosen)])
        features = features_of(network.eval(), images[chosen], self.pixel_mean, self.pixel_std, "cpu")
        return replace(part, features=features, labels=labels), index.class_names


def _folder(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 8)).save(root / name / f"{number}.png")


def _corrupted(root: Path, corruptions: Iterable[str]) -> None:
    for corruption in corruptions:
        for severity in "12345":
            _folder(root / corruption / severity, CLASSES)


class NeverInFog(PublishedSets):
    """As if all labels in fog were wrong."""

    def outputs_on(self, network: torch.nn.Module, data: DataConfig) -> tuple[LabeledFeatures, tuple[str, ...]]:
        part, names = super().outputs_on(network, data)
        return (replace(part, labels=(part.labels + 1) % len(names)) if "fog" in str(data.path) else part), names


def test_the_mean_corruption_error_is_that_of_the_fifteen_as_shares_of_alexnets(tmp_path):
    _corrupted(tmp_path, [*(name.removeprefix("imagenet_c_") for name in ALEXNET_ERRORS), "extra/saturate"])
    sets = [{"name": "imagenet_c", "path": str(tmp_path)}]
    config = robustness.Config.model_validate({"corruptions": (), "stylize": "color_statistics", "sets": sets})
    found = config.build().evaluate(NeverInFog())
    mce = found.scores["imagenet_c_mce"]
    assert mce.value == pytest.approx(1 / 0.819324 / 15)
    assert mce.chance == pytest.approx(np.mean([2 / 3 / error for error in ALEXNET_ERRORS.values()]))
    assert found.scores["imagenet_c_top1"].value == pytest.approx(15 / 16)
    assert mce.low == mce.high == pytest.approx(mce.value)
    assert "imagenet_c_saturate_top1" in found.scores
    assert "imagenet_c_top1" not in found.notes


def test_an_image_at_all_severities_counts_once_in_an_interval():
    values = np.random.default_rng(0).integers(0, 2, 200).astype(float)
    ids = np.arange(200)
    assert robustness._mean_of([(ids, values)] * 5) == mean_score(values)
    assert robustness._mean_of([(ids, values), (ids[1:], values[1:])]).low is None


def test_published_sets_are_measured_among_the_classes_that_they_have(tmp_path):
    some = CLASSES[1:]
    _folder(tmp_path / "r", some)
    _corrupted(tmp_path / "c", ("noise/gaussian_noise", "fog"))
    sets = [{"name": "imagenet_r", "path": str(tmp_path / "r")}, {"name": "imagenet_c", "path": str(tmp_path / "c")}]
    config = robustness.Config.model_validate({"corruptions": (), "stylize": "color_statistics", "sets": sets})
    found = config.build().evaluate(PublishedSets())
    scores = found.scores
    assert found.notes["imagenet_c_top1"].startswith("no mCE without shot_noise, impulse_noise")
    assert list(scores)[-4:] == ["imagenet_r_top1", "imagenet_c_fog_top1", "imagenet_c_gaussian_noise_top1", "imagenet_c_top1"]
    assert scores["imagenet_r_top1"].value == scores["imagenet_c_top1"].value == 1
    assert scores["imagenet_r_top1"].chance == 1 / 2
    assert scores["imagenet_c_top1"].chance == 1 / 3


def test_a_published_set_that_is_laid_out_otherwise_is_refused(tmp_path):
    for name, words in (("imagenet_r", "has no folders of classes"), ("imagenet_c", "has no folders CORRUPTION/SEVERITY")):
        with pytest.raises(UsageError, match=words):
            Variant.model_validate({"name": name, "path": str(tmp_path)}).parts()
    with pytest.raises(UsageError, match="there is no folder"):
        Variant(name="imagenet_sketch", path=str(tmp_path / "gone")).parts()
    _folder(tmp_path / "fog" / "1", CLASSES)
    with pytest.raises(UsageError, match="lacks the severities 2, 3, 4, 5"):
        Variant(name="imagenet_c", path=str(tmp_path)).parts()
    with pytest.raises(UsageError, match="has classes that the train images have not, such as n02"):
        classes_in(("n01", "n02"), ("n01",), "imagenet_r")


def test_an_unknown_corruption_is_answered_with_the_nearest():
    with pytest.raises(ValidationError, match="did you mean 'contrast'"):
        robustness.Config(corruptions=("contrasts",))


@pytest.mark.parametrize(
    "options", [{"severities": ()}, {"severities": (1, 1)}, {"severities": (3, 1)}, {"severities": (6,)}, {"corruptions": ("fog", "fog")}]
)
def test_options_without_a_meaning_are_refused(options):
    with pytest.raises(ValidationError):
        robustness.Config(**options)
