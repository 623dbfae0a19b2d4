import pytest
import torch

from ray_sassl.experiments import data_root, experiments, load_experiment
from ray_sassl.nn.weights import weights_path
from ray_sassl.plugins import UsageError
from ray_sassl.run import build_method
from ray_sassl.stylize import all_published_weights
from ray_sassl.train.loop import micro_batch

NAMES = list(experiments())
BASES = [name for name in NAMES if f"{name}_sassl" in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_is_called_like_its_function_and_says_what_it_is(name):
    assert load_experiment(name).name == name
    first_line = (experiments()[name].__doc__ or "").splitlines()[0]
    assert first_line.endswith((".", ":"))
    assert len(first_line) < 120


def test_every_objective_has_its_experiments_of_each_size_with_and_without_style():
    sizes = ("cifar10", "cifar10_cpu", "imagenet")
    wanted = {f"{method}_{size}{style}" for method in ("simclr", "moco", "byol") for size in sizes for style in ("", "_sassl")}
    assert wanted | {"demo"} <= set(NAMES)


@pytest.mark.parametrize("name", BASES)
def test_the_form_with_style_differs_in_style_alone(name):
    base, styled = (load_experiment(form).model_dump(mode="json") for form in (name, f"{name}_sassl"))
    assert {part for part in base if base[part] != styled[part]} - {"stream"} == {"name", "stylize"}
    assert base["stylize"] == {"name": "identity"}
    assert styled["stylize"]["name"] in ("swift", "magenta")


def test_large_images_are_repainted_by_the_published_network_where_its_weights_are(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    assert load_experiment("moco_imagenet_sassl").stylize.name == "swift"
    path = weights_path(all_published_weights()["magenta"])
    path.parent.mkdir(parents=True)
    path.touch()
    assert load_experiment("moco_imagenet_sassl").stylize.name == "magenta"


def test_both_demos_differ_in_style_alone():
    plain, styled = (load_experiment(form).model_dump(mode="json") for form in ("demo_plain", "demo"))
    assert {part for part in plain if plain[part] != styled[part]} == {"name", "stylize", "sassl"}


@pytest.mark.parametrize("name", ["demo", "demo_plain"])
def test_a_demo_needs_no_data_of_the_users(name):
    config = load_experiment(name)
    assert config.evaluate.train is not None
    assert config.evaluate.test is not None
    assert all(data.path.startswith("synthetic") for data in (config.data, config.evaluate.train, config.evaluate.test))


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_divides_over_the_workers(name):
    config = load_experiment(name)
    assert micro_batch(config.train, max(1, config.scaling.num_workers)) >= 32


@pytest.mark.parametrize("name", BASES)
def test_the_network_can_be_built(name):
    config = load_experiment(name)
    with torch.device("meta"):
        method = build_method(config)
    assert any(parameter.requires_grad for parameter in method.backbone.parameters())


def test_the_data_are_looked_for_where_the_variable_says(monkeypatch):
    monkeypatch.setenv("RAY_SASSL_DATA", "/mnt/images")
    config = load_experiment("moco_cifar10_cpu")
    assert data_root() == "/mnt/images"
    assert config.data.path == "/mnt/images/cifar10/train-*.parquet"
    assert config.evaluate.test is not None
    assert config.evaluate.test.path == "/mnt/images/cifar10/test-*.parquet"
    monkeypatch.delenv("RAY_SASSL_DATA")
    assert load_experiment("moco_cifar10_cpu").data.path == "data/cifar10/train-*.parquet"


def test_an_unknown_experiment_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no experiment is called 'moco_cifar' \(did you mean 'moco_cifar10'\?\)"):
        load_experiment("moco_cifar")


@pytest.mark.parametrize("name", ["data_root", "_with_style", "ViewsConfig"])
def test_what_is_no_experiment_is_not_one(name):
    with pytest.raises(UsageError, match="no experiment is called"):
        load_experiment(name)
