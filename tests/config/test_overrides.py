import re

import pytest

from ray_sassl.config.overrides import OverrideError, apply_overrides, field_paths
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import load_experiment
from ray_sassl.methods.byol import Config as BYOL
from ray_sassl.views import recipes


@pytest.fixture(scope="module")
def config() -> ExperimentConfig:
    return load_experiment("simclr_cifar10_cpu")


def _get(config: ExperimentConfig, path: str) -> object:
    value: object = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3", 3.0),
        ("train.epochs=0.5", 0.5),
        ("optim.base_lr=1e-3", 1e-3),
        ("optim.weight_decay=0", 0.0),
        ("data.block_rows=1e3", 1000),
        ("train.compile=true", True),
        ("method.temperature=0.2", 0.2),
        ("views.left.crop_scale=[0.2, 1.0]", (0.2, 1.0)),
        ("sassl.alpha=[1e-1, 2e-1]", (0.1, 0.2)),
        ("data.path=[a.parquet, b.parquet]", ("a.parquet", "b.parquet")),
        ("data.path=s3://bucket/a?region=us-east-1", "s3://bucket/a?region=us-east-1"),
        ("data.label_column=null", None),
        ("optim.name=lars", "lars"),
        ("name=my run", "my run"),
        ("stream.pool.initial=1", 1),
    ],
)
def test_a_path_sets_its_value(config, override, expected):
    path = override.partition("=")[0]
    changed = apply_overrides(config, [override])
    assert _get(changed, path) == expected
    assert type(_get(changed, path)) is type(expected)
    assert _get(changed, "seed") == config.seed


def test_nothing_else_changes_and_the_config_itself_stays(config):
    before = config.model_dump(mode="json")
    changed = apply_overrides(config, ["method.temperature=0.7"]).model_dump(mode="json")
    assert config.model_dump(mode="json") == before
    assert changed.pop("method") == before["method"] | {"temperature": 0.7}
    assert changed == {name: value for name, value in before.items() if name != "method"}


def test_a_plugin_is_chosen_by_name_with_its_own_defaults(config):
    assert apply_overrides(config, ["method=byol"]).method == BYOL()


def test_overrides_are_applied_in_order(config):
    method = apply_overrides(config, ["method=byol", "method.base_momentum=0.9", "method.bn=plain"]).method
    assert method == BYOL(base_momentum=0.9, bn="plain")
    assert apply_overrides(config, ["method.temperature=0.9", "method=byol", "method=simclr"]).method.temperature == 0.1


def test_a_plugin_may_be_given_whole(config):
    assert apply_overrides(config, ["method={name: byol, base_momentum: 0.9}"]).method == BYOL(base_momentum=0.9)


def test_a_mapping_changes_the_fields_that_it_names(config):
    changed = apply_overrides(config, ["method={temperature: 0.3}", "optim={name: lars, base_lr: 1}", "method={name: simclr, bn: plain}"])
    assert changed.method == config.method.model_copy(update={"temperature": 0.3, "bn": "plain"})
    assert changed.optim == config.optim.model_copy(update={"name": "lars", "base_lr": 1.0})


def test_style_augmentation_is_switched_on_by_a_name(config):
    changed = apply_overrides(config, ["stylize=color_statistics", "stylize.regularization=1e-3"])
    assert (changed.stylize.name, changed.stylize.regularization) == ("color_statistics", 1e-3)


def test_a_recipe_stands_for_a_pair_of_views(config):
    changed = apply_overrides(config, ["views=byol_32", "views.right.solarize_prob=0.5"])
    assert changed.views.left == recipes.byol(32).left
    assert changed.views.right.solarize_prob == 0.5


def test_data_that_is_not_set_is_given_whole(config):
    bare = apply_overrides(config, ["evaluate.train=null"])
    assert bare.evaluate.train is None
    assert apply_overrides(bare, ["evaluate.train={path: other}"]).evaluate.train.path == "other"
    with pytest.raises(OverrideError, match=r"evaluate\.train is not set; give it whole first, as in evaluate\.train=\{path: \.\.\.\}"):
        apply_overrides(bare, ["evaluate.train.path=other"])


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("temperature", "method.temperature"),
        ("train.epoch", "train.epochs"),
        ("epochs", "train.epochs"),
        ("lr", "optim.base_lr"),
        ("batch", "train.global_batch"),
        ("method.temprature", "method.temperature"),
        ("data.pth", "data.path"),
        ("num_workers", "scaling.num_workers"),
        ("views.crop_scale", "views.left.crop_scale"),
        ("train.epochs.x", "train.epochs"),
        ("seed.low", "seed"),
    ],
)
def test_an_unknown_path_names_the_nearest(config, path, nearest):
    with pytest.raises(OverrideError) as error:
        apply_overrides(config, [f"{path}=3"])
    assert str(error.value) == f"{path} is not in the config; the nearest is {nearest}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.global_batch=-1", "train.global_batch: Input should be greater than 0"),
        ("train.epochs=many", "train.epochs: Input should be a valid number"),
        ("train.epochs=", "train.epochs: Input should be a valid number"),
        ("optim.name=adam", "'sgd', 'lars' or 'adamw'"),
        ("optim.beta2=0.9", "optim.beta2 has no effect on sgd; it belongs to adamw"),
        ("method=mocoo", "methods has no 'mocoo' (did you mean 'moco'?). Known: "),
        ("method.temperature=0", "method.temperature: Input should be greater than 0"),
        ("stylize=identiy", "did you mean 'identity'?"),
        ("views=byol_33", "views has no recipe 'byol_33' (did you mean 'byol_32'?)"),
        ("views.left.crop_scale=[1.0, 0.2]", "write (0.2, 1.0)"),
        ("sassl.prob=1.5", "sassl.prob: Input should be less than or equal to 1"),
        ("sassl.views=center", "'left', 'right', 'both', 'small' or 'all'"),
        ("stream.pool.min=3", "the pool needs min <= initial <= max, not 3, None, 1"),
        ("data.path=''", "the data path is empty"),
        ("optim.base_lr=.nan", "optim.base_lr: Input should be a finite number"),
        ("train={epoch: 3}", "train.epoch: Extra inputs are not permitted"),
    ],
)
def test_a_value_that_a_field_does_not_take_is_answered_with_what_it_does(config, override, says):
    with pytest.raises(OverrideError) as error:
        apply_overrides(config, [override])
    assert says in str(error.value)
    assert "pydantic" not in str(error.value)


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train.epochs 3"])
def test_what_is_no_override_is_answered_with_an_example(config, override):
    with pytest.raises(OverrideError, match=r"write path=value, such as train\.epochs=10"):
        apply_overrides(config, [override])


def test_a_value_that_is_not_yaml_is_refused(config):
    with pytest.raises(OverrideError, match="not valid YAML"):
        apply_overrides(config, ["sassl.alpha=[0.1, "])


def test_every_path_can_be_set_to_the_value_that_it_has(config):
    paths = list(field_paths(config))
    assert len(paths) == len(set(paths)) > 80
    import yaml

    def as_text(path: str) -> str:
        tree = config.model_dump(mode="json")
        for name in path.split("."):
            tree = tree[name]
        return yaml.safe_dump(tree, default_flow_style=True, width=10_000).removesuffix("\n...\n")

    assert apply_overrides(config, [f"{path}={as_text(path)}" for path in paths]) == config


def test_values_that_are_only_valid_together_may_follow_each_other():
    for order in (["sassl.style_source=bank", "sassl.bank=b.safetensors"], ["sassl.bank=b.safetensors", "sassl.style_source=gaussian"]):
        sassl = apply_overrides(load_experiment("demo"), [*order, "train.epochs=3"]).sassl
        assert sassl.bank == "b.safetensors"


def test_a_value_whose_companion_never_comes_is_an_error_of_its_own():
    with pytest.raises(OverrideError, match=r"^sassl\.style_source=bank: .*set sassl\.bank"):
        apply_overrides(load_experiment("demo"), ["sassl.style_source=bank", "train.epochs=3"])


def test_a_path_that_is_missing_because_a_value_was_refused_is_answered_with_why_it_was(config):
    with pytest.raises(OverrideError, match=r"method=magenta: .*no"):
        apply_overrides(config, ["method=magenta", "method.momentum=0.5"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("photos #2", "photos #2"),
        ("2023", "2023"),
        ("1e3", "1e3"),
        ("true", "true"),
        ("a: b", "a: b"),
        ("[raw] set", "[raw] set"),
        ("*.tar", "*.tar"),
        ("x, y", "x, y"),
        ("it's", "it's"),
        ("~/photos", "~/photos"),
        ("{000..146}.tar", "{000..146}.tar"),
        ("a\tb", "a\tb"),
        ("'photos #2'", "photos #2"),
        ('"quoted"', "quoted"),
        ("[a, b]", ("a", "b")),
    ],
)
def test_what_a_text_field_holds_is_the_text_as_it_was_given(text: str, path: str | tuple[str, ...]):
    assert apply_overrides(load_experiment("moco_cifar10_cpu"), [f"data.path={text}"]).data.path == path


def test_what_only_looks_like_a_list_or_a_number_to_the_base_of_60_is_a_text(config):
    assert apply_overrides(config, ["data.path=- photos"]).data.path == "- photos"
    with pytest.raises(OverrideError, match=r"train\.epochs=1:30"):
        apply_overrides(config, ["train.epochs=1:30"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochs=010", "begins with 0, as octal numbers do; write 10"),
        ("seed=-007", "write -7"),
        ("train.epochs=08", "write 8"),
        ("views.left.crop_scale=[010, 1]", "write 10"),
        ("train.epochs=yes", "true is not a number"),
        ("sassl.prob=off", "false is not a number"),
        ("stream.local_threads=true", "true is not a number"),
    ],
)
def test_what_yaml_reads_as_another_number_is_refused(config, override: str, says: str):
    with pytest.raises(OverrideError, match=re.escape(says)):
        apply_overrides(config, [override])


def test_a_name_may_begin_with_0_and_a_fraction_too(config):
    changed = apply_overrides(config, ["name=010", "optim.base_lr=0.10", "seed=0"])
    assert (changed.name, changed.optim.base_lr, changed.seed) == ("010", 0.1, 0)


def test_a_text_field_that_may_be_empty_takes_null():
    config = apply_overrides(load_experiment("moco_cifar10_cpu"), ["data.label_column=null"])
    assert config.data.label_column is None
    assert apply_overrides(config, ["data.label_column=null_class"]).data.label_column == "null_class"
    assert apply_overrides(config, ["name=null"]).name == "null"


def test_a_pair_of_path_and_value_is_used_as_it_is():
    config = apply_overrides(load_experiment("moco_cifar10_cpu"), [("name", "2023"), ("train.epochs", 3)])
    assert (config.name, config.train.epochs) == ("2023", 3)
