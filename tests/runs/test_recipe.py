"""The config that is chosen for somebody's own images."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.methods import MethodConfig
from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import names_data
from ray_sassl.runs.recipe import MIN_IMAGES, Machine, Recipe, choose_recipe, run_name
from tests.runs.photos import write_photos

TWO_GPUS = Machine(num_gpus=2, gpu_bytes=80 * 2**30, has_bfloat16=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 100)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "labeled", 100, (300, 230), classes=2)


def _choices(recipe: Recipe) -> dict[str, str]:
    return {choice.what: choice.value for choice in recipe.choices}


def test_a_folder_without_classes_is_pretrained_without_labels_on_this_machine(photos: Path):
    recipe = choose_recipe(str(photos), machine=Machine())
    config = recipe.config
    assert (config.name, config.views.size_px, config.backbone.name, config.stylize.name) == ("photos", 32, "resnet20", "swift")
    assert config.train.global_batch == 32  # a power of two, at most half of 100 images
    assert config.scaling.num_workers == 0
    assert config.evaluate.train is None
    assert _choices(recipe)["scores"] == "effective rank"
    assert "100 images are few" in recipe.notes[0]


def test_class_folders_give_scores_and_large_images_large_views(labeled: Path):
    config = choose_recipe(str(labeled), machine=TWO_GPUS).config
    assert (config.views.size_px, config.evaluate.size_px, config.backbone.name) == (224, 224, "resnet18")
    assert (config.train.precision, config.scaling.num_workers) == ("bfloat16", 2)
    assert config.evaluate.train == config.data
    assert config.evaluate.test is None
    assert choose_recipe(str(labeled), machine=Machine()).config.views.size_px == 64


@pytest.mark.parametrize("name", ["photos", "labeled"])
def test_every_choice_names_an_override_that_the_config_takes(request: pytest.FixtureRequest, name: str):
    folder = str(request.getfixturevalue(name))
    for choice in choose_recipe(folder, machine=Machine()).choices:
        assert isinstance(choose_recipe(folder, [choice.change], Machine()).config, ExperimentConfig), choice
        assert choice.reason


def test_overrides_win_over_what_was_chosen(photos: Path):
    changes = ["stylize=identity", "train.epochs=3", "data.label_column=null", ("backbone.name", "resnet18")]
    config = choose_recipe(str(photos), changes, Machine()).config
    assert (config.stylize.name, config.train.epochs, config.backbone.name) == ("identity", 3, "resnet18")
    assert config.data.label_column is None


@pytest.mark.parametrize("name", plugin_names("ray_sassl.methods"))
def test_every_objective_has_a_recipe_with_the_views_of_its_paper(photos: Path, name: str):
    config = choose_recipe(str(photos), [f"method={name}"], Machine()).config
    assert isinstance(config.method, MethodConfig)
    assert type(config.method) is load_plugin("ray_sassl.methods", name).Config
    assert config.views.num_small <= 2


def test_an_unknown_objective_is_answered_with_the_nearest(photos: Path):
    with pytest.raises(UsageError, match="simclr"):
        choose_recipe(str(photos), ["method=simclrr"], Machine())


@pytest.mark.parametrize("count", [1, 10, MIN_IMAGES - 1])
def test_too_few_images_are_refused_in_a_sentence(tmp_path: Path, count: int):
    with pytest.raises(UsageError, match=f"has {count} images, and pretraining needs at least {MIN_IMAGES}"):
        choose_recipe(str(write_photos(tmp_path / "few", count)), machine=Machine())


def test_copies_of_one_image_are_refused(tmp_path: Path):
    folder = write_photos(tmp_path / "one", MIN_IMAGES)
    for path in folder.iterdir():
        path.write_bytes((folder / "0000.png").read_bytes())
    with pytest.raises(UsageError, match="are the same file"):
        choose_recipe(str(folder), machine=Machine())


def test_a_batch_fits_the_memory_of_the_gpus(tmp_path: Path):
    folder = str(write_photos(tmp_path / "many", 3000, (8, 8)))
    large = choose_recipe(folder, machine=TWO_GPUS).config.train
    small = choose_recipe(folder, machine=Machine(2, 2**26, False)).config.train
    assert large.global_batch == 512
    assert small.global_batch < large.global_batch
    assert small.precision == "float32"


def test_an_experiment_is_one_although_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").symlink_to(photos)
    assert not names_data("demo")
    assert ray_sassl.load_config("demo") == load_experiment("demo")
    assert ray_sassl.load_config("./demo").data.path == "./demo"


def test_a_path_at_which_nothing_is_says_so(tmp_path: Path):
    with pytest.raises(UsageError, match="there is nothing at"):
        ray_sassl.load_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("path", "name"),
    [("photos/", "photos"), ("s3://bucket/a b/*.tar", "a-b"), ("/data/x/{000..146}.tar", "x"), ("*.jpg", "images"), ("../é", "images")],
)
def test_a_run_is_called_after_itswrite_photos(path: str, name: str):
    assert run_name(path) == name


def test_a_run_without_labels_ends_with_neighbors_and_one_that_is_continued_keeps_its_config(photos: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    short = {"train.epochs": 1.0, "backbone.name": "resnet20"}
    result = ray_sassl.pretrain(str(photos), run_dir, overrides=short)
    assert result.status == "finished"
    rank = json.loads((run_dir / "neighbors.json").read_text())["feature_rank"]
    assert 1 < rank <= 64
    report = Path(ray_sassl.report(str(run_dir))).read_text()
    assert base64.b64encode((run_dir / "neighbors.png").read_bytes()).decode() in report
    assert f"span about {rank:.1f} directions" in report
    again = ray_sassl.plan_run(str(photos), run_dir, overrides={"train.epochs": 2.0}, resume="if begun")
    assert again.resume
    assert again.recipe is None
    assert (again.config.train.epochs, again.config.train.global_batch) == (2.0, 32)


def test_the_length_of_a_run_follows_from_the_minutes_that_it_may_take(photos: Path):
    from ray_sassl.api.pretraining import lasting

    config = choose_recipe(str(photos), ["stylize=identity", "views.size_px=16"], Machine()).config
    one, ten = lasting(config, 1.0), lasting(config, 100.0)
    assert one.train.epochs < ten.train.epochs
    assert one.optim.warmup_epochs <= one.train.epochs / 10
