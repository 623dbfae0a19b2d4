from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ray_sassl.evaluation.protocols import semi_supervised
from ray_sassl.evaluation.protocols.semi_supervised import rows_of_split_file, subset_name
from ray_sassl.process.errors import UsageError
from tests.evaluation.conftest import Normalized, SmallSubject

QUICK = {"batch_size": 8, "learning_rate": 0.5, "epochs": 3}


class Watched(SmallSubject):
    """Remembers which train images were asked for."""

    def training_views(self, sample_id, epochs, batch_size, seed):
        self.asked = [*getattr(self, "asked", []), (np.sort(sample_id).tolist(), epochs)]
        return super().training_views(sample_id, epochs, batch_size, seed)


def test_each_share_trains_on_as_many_images_of_each_class_and_scores_on_all_test_images():
    subject = Watched(network=Normalized())
    result = semi_supervised.Config(subsets=(0.1, 0.5), **(QUICK | {"epochs": (5, 2)})).build().evaluate(subject)
    (few, few_epochs), (half, half_epochs) = subject.asked
    labels = subject.labels("train")[1]
    assert (few_epochs, half_epochs) == (5, 2)
    assert np.bincount(labels[(np.array(few) - 5) // 3]).tolist() == [3, 3, 3]
    assert np.bincount(labels[(np.array(half) - 5) // 3]).tolist() == [15, 15, 15]
    assert {"10_percent_top1", "50_percent_top1", "10_percent_mean_per_class"} <= set(result.scores)
    assert result.scores["50_percent_top1"].value > 0.6
    assert result.details["10_percent"]["num_train"] == 9
    assert result.predictions is None


def test_one_subset_keeps_its_predictions_and_a_seed_draws_the_same_split():
    config = semi_supervised.Config(subsets=(0.3,), **QUICK)
    first, again = config.build().evaluate(SmallSubject()), config.build().evaluate(SmallSubject())
    assert first.scores == again.scores
    assert first.predictions is not None
    assert len(first.predictions.labels) == 60


def test_shuffled_labels_score_chance():
    config = semi_supervised.Config(subsets=(0.5,), **QUICK)
    top1 = config.build().evaluate(SmallSubject(180, 180, shuffled=True)).scores["50_percent_top1"]
    assert top1.low - 0.03 < 1 / 3 < top1.high + 0.03


def test_a_published_split_file_says_which_images(tmp_path: Path):
    path = tmp_path / "1percent.txt"
    path.write_text("".join(f"train_{row}.png\n" for row in (5, 0, 4, 9)))
    subject = Watched()
    result = semi_supervised.Config(subsets=(str(path),), **QUICK).build().evaluate(subject)
    assert subject.asked == [([5, 5 + 3 * 4, 5 + 3 * 5, 5 + 3 * 9], 3)]
    assert "1percent_top1" in result.scores


def test_names_in_a_split_file_match_without_folders_and_image_extensions(tmp_path: Path):
    path = tmp_path / "split.txt"
    path.write_text("n01/n01_2.JPEG\nn01_1\n\n")
    for names in (
        ["n01_1.JPEG", "n02_1.jpg", "n01_2.JPEG"],
        ["a.tar#n01_1", "a.tar#n02_1", "b.tar#n01_2"],
        ["t/n01_1", "t/n02_1", "t/n01_2"],
    ):
        assert rows_of_split_file(str(path), names).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "names no images"),
        (
            "a.png\nz.png",
            "1 of the 2 images that .* names are not among the 2 labeled train images, such as z; train images have names like a",
        ),
        ("a.png\na.png", "names 1 images twice"),
    ],
)
def test_a_split_file_that_does_not_fit_is_refused(tmp_path: Path, lines: str, message: str):
    (tmp_path / "split.txt").write_text(lines)
    with pytest.raises(UsageError, match=message):
        rows_of_split_file(str(tmp_path / "split.txt"), ["a.png", "b.png"])
    with pytest.raises(UsageError, match="there is no split file"):
        rows_of_split_file(str(tmp_path / "other.txt"), ["a.png"])
    (tmp_path / "split.txt").write_text("a")
    with pytest.raises(UsageError, match="share their name"):
        rows_of_split_file(str(tmp_path / "split.txt"), ["x/a.png", "y/a.png"])


def test_a_split_without_a_class_is_refused(tmp_path: Path):
    (tmp_path / "split.txt").write_text("train_0\ntrain_1")
    with pytest.raises(UsageError, match=r"class 2 \(blue\) has test images and no train images"):
        semi_supervised.Config(subsets=(str(tmp_path / "split.txt"),), **QUICK).build().evaluate(SmallSubject())


def test_subsets_have_names_of_their_own_and_a_number_of_epochs_each():
    assert [subset_name(subset) for subset in (0.01, 0.1, "s3://b/10percent.txt")] == ["1_percent", "10_percent", "10percent"]
    with pytest.raises(ValidationError, match="two subsets have the same name"):
        semi_supervised.Config(subsets=("a/x.txt", "b/x.txt"))
    with pytest.raises(ValidationError, match="epochs has 2 numbers for 1 subsets"):
        semi_supervised.Config(subsets=(0.1,))
    with pytest.raises(ValidationError):
        semi_supervised.Config(subsets=())
