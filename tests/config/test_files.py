import pytest
import yaml
from pydantic import ValidationError

from ray_sassl.config.files import from_yaml, read_config, to_yaml
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments import experiments, load_experiment
from ray_sassl.process.errors import UsageError

SHORT = """
name: short
data: {path: synthetic}
views: simclr_32
backbone: {name: resnet20}
method: {name: byol, base_momentum: 0.9}
"""


@pytest.mark.parametrize("name", list(experiments()))
def test_every_experiment_survives_a_round_trip_through_yaml(name):
    config = load_experiment(name)
    text = to_yaml(config)
    assert from_yaml(text) == config
    assert to_yaml(from_yaml(text)) == text


def test_yaml_holds_the_whole_tree_in_the_order_of_the_schema():
    tree = yaml.safe_load(to_yaml(load_experiment("demo")))
    assert list(tree) == list(ExperimentConfig.model_fields)
    assert next(iter(tree["method"])) == "name"


def test_fields_that_are_left_out_have_their_defaults():
    config = from_yaml(SHORT)
    assert config.method.base_momentum == 0.9
    assert config.stylize.name == "identity"
    assert config.train.epochs == 100


def test_a_file_is_read_by_path_or_uri(tmp_path):
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    assert read_config(str(path)) == read_config(path.as_uri()) == from_yaml(SHORT)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "short.yaml is not valid YAML"),
        ("- 1", "short.yaml is not a mapping of fields but a list"),
        ("", "short.yaml is not a mapping of fields but a NoneType"),
        (SHORT + "trian: {epochs: 3}", "short.yaml: trian: Extra inputs are not permitted"),
        (SHORT + "train: {epochs: 0}", "short.yaml: train.epochs: Input should be greater than 0"),
        (SHORT.replace("byol", "bool"), "methods has no 'bool'"),
        (SHORT.replace("name: short", ""), "short.yaml: name: Field required"),
        ("name: !!python/object/apply:os.getcwd []", "short.yaml is not valid YAML"),
    ],
)
def test_a_wrong_file_is_answered_with_its_name_and_what_is_wrong(text, says):
    with pytest.raises(UsageError) as error:
        from_yaml(text, source="short.yaml")
    assert says in str(error.value)


def test_a_config_is_frozen_in_all_its_parts():
    config = from_yaml(SHORT)
    for part, name in ((config, "name"), (config.train, "epochs"), (config.method, "base_momentum"), (config.views.left, "hue")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))
