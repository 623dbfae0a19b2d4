import pytest
import torch

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.roles import differing_paths
from ray_sassl.experiments import data_root, experiments, load_experiment
from ray_sassl.plugins import find_modules, plugin_names
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.process import build_method
from ray_sassl.train.config import micro_batch
from ray_sassl.train.schedule import scaled_lr
from ray_sassl.views.recipes import with_strong_left

NAMES = list(experiments())
BASES = [name for name in NAMES if f"{name}_sassl" in NAMES]
AUGMENTED = [name for name in NAMES if "_fa_" in name]


def _base(name: str) -> str:
    """The experiment that one with feature augmentation is made from."""
    return f"moco{name.removeprefix('sassl_fa')}_sassl" if name.startswith("sassl_fa") else name.replace("_fa_", "_")


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
    assert {f"{method}_imagenet_1000{style}" for method in ("simclr", "moco", "byol") for style in ("", "_sassl")} <= set(NAMES)


def test_every_objective_has_an_experiment_for_cpus_and_one_on_imagenet():
    assert {f"{method}_cifar10_cpu" for method in plugin_names("ray_sassl.methods")} <= set(NAMES)
    places = find_modules("ray_sassl.methods")
    ours = [name for name in plugin_names("ray_sassl.methods") if places[name].startswith("ray_sassl.")]
    assert {f"{method}_imagenet" for method in ours} <= set(NAMES)


# What the authors' commands and defaults say: the peak rate of their batch, its end, decay, epochs and batch.
OFFICIAL = {
    "simclr_imagenet": ("lars", 4.8, 0.0, 1e-6, "kernels", 100, 4096),
    "moco_imagenet": ("sgd", 0.03, 0.0, 1e-4, "all", 200, 256),
    "byol_imagenet": ("lars", 4.8, 0.0, 1e-6, "kernels", 300, 4096),
    "byol_imagenet_1000": ("lars", 3.2, 0.0, 1.5e-6, "kernels", 1000, 4096),
    "simsiam_imagenet": ("sgd", 0.1, 0.0, 1e-4, "all", 100, 512),
    "barlow_twins_imagenet": ("lars", 1.6, 1.6e-3, 1e-6, "kernels", 1000, 2048),
    "vicreg_imagenet": ("lars", 0.6, 6e-4, 1e-6, "kernels", 100, 512),
    "swav_imagenet": ("lars", 0.6, 6e-4, 1e-6, "all", 200, 256),
    "swav_large_imagenet": ("lars", 4.8, 4.8e-3, 1e-6, "all", 800, 4096),
    "dino_imagenet": ("sgd", 0.06, 1e-6, 1e-4, "kernels", 100, 512),
    "dino_vit_imagenet": ("adamw", 0.001, 1e-6, 0.04, "kernels", 100, 512),
    "lejepa_imagenet": ("adamw", 5e-4, 5e-7, 5e-4, "kernels", 100, 512),
    "moco_v3_imagenet": ("lars", 9.6, 0.0, 1e-6, "kernels", 100, 4096),
    "moco_v3_vit_imagenet": ("adamw", 6e-4, 0.0, 0.1, "all", 300, 1024),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_experiment_on_imagenet_has_the_official_numbers(name):
    config = load_experiment(name)
    optim, train = config.optim, config.train
    peak = scaled_lr(optim.base_lr, train.global_batch, optim.lr_scaling)
    found = (optim.name, peak, optim.final_lr, optim.weight_decay, optim.decay, train.epochs, train.global_batch)
    assert _close(found, OFFICIAL[name])


def _close(found: tuple, official: tuple) -> bool:
    return all(one == other if isinstance(one, str) else one == pytest.approx(other) for one, other in zip(found, official, strict=True))


def test_feature_augmentation_has_its_experiments_of_each_size():
    sizes = ("cifar10", "cifar10_cpu", "imagenet100", "imagenet")
    families = ("simclr_fa", "moco_fa", "byol_fa", "nnclr", "sassl_fa")
    assert {f"{family}_{size}" for family in families for size in sizes} <= set(NAMES)


@pytest.mark.parametrize("name", AUGMENTED)
def test_the_form_with_feature_augmentation_differs_in_it_and_in_the_strength_of_the_left_view(name):
    base, augmented = (load_experiment(form) for form in (_base(name), name))
    before, after = base.model_dump(mode="json"), augmented.model_dump(mode="json")
    assert {part for part in before if before[part] != after[part]} - {"train"} == {"name", "method", "views"}
    changed = {field for field in before["method"] if before["method"][field] != after["method"][field]}
    assert changed - {"predictor_hidden_size"} == {"fa"}
    assert augmented.views == with_strong_left(base.views)
    assert not {f for f in before["train"] if before["train"][f] != after["train"][f]} - {"global_batch", "accumulate", "epochs"}


@pytest.mark.parametrize("name", AUGMENTED)
def test_the_control_of_feature_augmentation_differs_in_what_happens_to_features_alone(name):
    augmented = load_experiment(name)
    control = apply_overrides(augmented, ["method.fa.augmentation=control"])
    differing = differing_paths(augmented.model_dump(mode="json"), control.model_dump(mode="json"))
    assert all(path.startswith("method.fa.augmentation.") for path in differing)
    with torch.device("meta"):
        one, other = (build_method(config) for config in (augmented, control))
    for form in ("directions", "num_losses", "has_predictor", "architecture"):
        assert getattr(one.branches, form) == getattr(other.branches, form)
    assert [tuple(p.shape) for p in one.parameters()] == [tuple(p.shape) for p in other.parameters()]


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.endswith(("_fa_imagenet", "_fa_imagenet100")) or name.startswith("nnclr_im")]
)
def test_feature_augmentation_on_imagenet_takes_at_most_512_images_at_a_time_for_200_epochs(name):
    train = load_experiment(name).train
    assert train.accumulate > 1
    assert train.global_batch // train.accumulate <= 512 <= train.global_batch
    assert train.epochs == 200


def test_both_papers_together_are_feature_augmentation_and_style_augmentation():
    for size in ("cifar10", "cifar10_cpu", "imagenet100", "imagenet"):
        both, fa = (load_experiment(f"{family}_{size}") for family in ("sassl_fa", "moco_fa"))
        assert both.method == fa.method
        assert both.views == fa.views
        assert both.stylize.name in ("swift", "magenta")
        assert both.sassl.views == "left"


@pytest.mark.parametrize("name", BASES)
def test_the_form_with_style_differs_only_in_style(name):
    base, styled = (load_experiment(form).model_dump(mode="json") for form in (name, f"{name}_sassl"))
    assert {part for part in base if base[part] != styled[part]} - {"stream"} == {"name", "stylize"}
    assert base["stylize"] == {"name": "identity"}
    assert styled["stylize"]["name"] in ("swift", "magenta")


def test_the_stylizer_of_an_experiment_does_not_depend_on_what_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    chosen = {name: load_experiment(name).stylize.name for name in NAMES if "sassl" in name}
    assert {stylizer for name, stylizer in chosen.items() if "imagenet" in name} == {"magenta"}
    assert {stylizer for name, stylizer in chosen.items() if "imagenet" not in name} == {"swift"}
    with pytest.raises(UsageError, match="ray-sassl weights fetch magenta"):
        load_experiment("moco_imagenet_sassl").stylize.build(torch.device("cpu"))


def test_the_experiments_of_banks_differ_in_where_styles_come_from():
    own = load_experiment("moco_imagenet_sassl").model_dump(mode="json")
    for styles in ("painters", "dtd", "inaturalist", "retinopathy"):
        config = load_experiment(f"moco_imagenet_sassl_{styles}")
        assert config.sassl.bank == f"{data_root()}/banks/{styles}.safetensors"
        tree = config.model_dump(mode="json")
        assert {part for part in own if own[part] != tree[part]} == {"name", "sassl"}


def test_the_demos_differ_only_in_style():
    plain, styled = (load_experiment(form).model_dump(mode="json") for form in ("demo_plain", "demo"))
    assert {part for part in plain if plain[part] != styled[part]} == {"name", "stylize", "sassl"}


@pytest.mark.parametrize("name", ["demo", "demo_plain"])
def test_a_demo_needs_no_data_of_the_users(name):
    config = load_experiment(name)
    assert config.evaluate.train is not None
    assert config.evaluate.test is not None
    assert all(data.paths[0].startswith("synthetic") for data in (config.data, config.evaluate.train, config.evaluate.test))


@pytest.mark.parametrize("name", NAMES)
def test_the_batch_divides_over_the_workers(name):
    config = load_experiment(name)
    assert micro_batch(config.train, max(1, config.scaling.num_workers)) >= 32


@pytest.mark.parametrize("name", [name for name in NAMES if "_sassl" not in name])
def test_the_network_can_be_built(name):
    config = load_experiment(name)
    with torch.device("meta"):
        method = build_method(config)
    assert any(parameter.requires_grad for parameter in method.backbone.parameters())


def test_the_data_folder_follows_the_variable(monkeypatch):
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
