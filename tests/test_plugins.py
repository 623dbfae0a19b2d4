from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from ray_sassl.plugins import FrozenConfig, PluginConfig, UnknownPluginError, did_you_mean, load_plugin, plugin_field, plugin_names
from ray_sassl.process.errors import UsageError
from tests.distribution import install

PLUGIN = """
from pydantic import Field
from ray_sassl.plugins import PluginConfig

class Config(PluginConfig):
    size: int = Field(default={size}, ge=1)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of a package with the plug-ins `circle` and `square`, a module that is none, and a private one."""
    name = f"shapes_{abs(hash(request.node.nodeid))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "square.py").write_text(PLUGIN.format(size=2))
    (folder / "circle.py").write_text(PLUGIN.format(size=1))
    (folder / "geometry.py").write_text("PI = 3")
    (folder / "_private.py").write_text(PLUGIN.format(size=3))
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.fixture
def drawing(package: str) -> Any:
    class Drawing(FrozenConfig):
        shape: plugin_field(package, PluginConfig) = "circle"  # type: ignore[valid-type]
        scale: float = Field(1.0, gt=0)

    return Drawing


def test_every_public_module_with_a_config_is_a_plugin(package):
    assert plugin_names(package) == ["circle", "square"]


def test_a_plugins_name_is_its_files_name(package):
    assert load_plugin(package, "square").Config().name == "square"


def test_an_unknown_plugin_is_answered_with_the_nearest_and_the_known_ones(package):
    with pytest.raises(UnknownPluginError, match=r"has no 'squar' \(did you mean 'square'\?\)\. Known: circle, square\."):
        load_plugin(package, "squar")


@pytest.mark.parametrize("name", ["geometry", "_private", "../square", ""])
def test_what_is_no_plugin_is_not_loaded(package, name):
    with pytest.raises(UnknownPluginError, match="Known: circle, square"):
        load_plugin(package, name)


def test_a_field_takes_a_name_a_mapping_or_a_config(package, drawing):
    square = load_plugin(package, "square").Config
    assert drawing().shape.name == "circle"
    assert drawing(shape="square").shape == square()
    assert drawing(shape={"name": "square", "size": 5}).shape == square(size=5)
    assert drawing(shape=square(size=7)).shape.size == 7


def test_a_field_is_written_with_its_plugins_name(drawing):
    tree = drawing(shape={"name": "square", "size": 5}).model_dump(mode="json")
    assert tree == {"shape": {"name": "square", "size": 5}, "scale": 1.0}
    assert drawing.model_validate(tree).model_dump(mode="json") == tree


@pytest.mark.parametrize("shape", [{"size": 5}, {"name": None}, {"name": 3}])
def test_a_mapping_without_a_name_is_answered_with_the_known_ones(drawing, shape):
    with pytest.raises(ValidationError, match="config needs a 'name', one of: circle, square"):
        drawing(shape=shape)


@pytest.mark.parametrize("shape", [3, None, ["square"]])
def test_what_is_no_plugin_config_is_refused(drawing, shape):
    with pytest.raises(ValidationError):
        drawing(shape=shape)


def test_a_plugins_own_fields_are_checked(drawing):
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        drawing(shape={"name": "square", "size": 0})
    with pytest.raises(ValidationError, match="Extra inputs"):
        drawing(shape={"name": "square", "radius": 1})


def test_configs_are_frozen_and_refuse_what_they_do_not_know(drawing):
    config = drawing()
    with pytest.raises(ValidationError, match="frozen"):
        config.scale = 2.0
    with pytest.raises(ValidationError, match="Extra inputs"):
        drawing(scael=2.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_of_a_config_are_finite(drawing, value):
    with pytest.raises(ValidationError, match="finite"):
        drawing(scale=value)


def test_only_a_near_name_is_suggested():
    assert did_you_mean("byool", ["byol", "moco"]) == " (did you mean 'byol'?)"
    assert did_you_mean("vicreg", ["byol", "moco"]) == ""


def test_a_usage_error_is_a_value_error():
    assert issubclass(UnknownPluginError, UsageError)
    assert issubclass(UsageError, ValueError)


# What other distributions bring.


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[dict[str, str]], str]:
    """Installs a distribution with these files, and returns its package."""
    name = f"brought_{abs(hash(request.node.nodeid))}"

    def bring(files: dict[str, str]) -> str:
        install(tmp_path, name, files)
        monkeypatch.syspath_prepend(tmp_path)
        return name

    return bring


def test_another_distributions_plugin_is_found_and_named_after_its_file(brought):
    brought({"methods/circle.py": PLUGIN.format(size=4), "methods/_private.py": "", "methods/geometry.py": "PI = 3"})
    assert "circle" in plugin_names("ray_sassl.methods")
    assert not {"_private", "geometry"} & set(plugin_names("ray_sassl.methods"))
    assert "circle" not in plugin_names("ray_sassl.feature_aug")
    config = load_plugin("ray_sassl.methods", "circle").Config()
    assert (config.name, config.size) == ("circle", 4)


def test_a_name_that_exists_twice_is_refused_with_both_places(brought):
    package = brought({"methods/simclr.py": PLUGIN.format(size=4)})
    with pytest.raises(UsageError, match=rf"methods has 'simclr' twice: ray_sassl\.methods\.simclr and {package}\.methods\.simclr"):
        plugin_names("ray_sassl.methods")


def test_a_broken_plugin_of_another_distribution_is_named_with_its_error(brought):
    package = brought({"methods/broken.py": "import something_absent"})
    with pytest.raises(
        UsageError, match=rf"the plug-in {package}\.methods\.broken cannot be imported: ModuleNotFoundError: .*something_absent"
    ):
        plugin_names("ray_sassl.methods")
    assert "mask" in plugin_names("ray_sassl.feature_aug")


def test_a_package_that_cannot_be_imported_is_named_with_its_distribution(brought):
    package = brought({"methods/circle.py": PLUGIN.format(size=4), "__init__.py": "1 / 0"})
    with pytest.raises(UsageError, match=rf"the plug-ins of {package} cannot be imported: {package}: ZeroDivisionError"):
        plugin_names("ray_sassl.methods")


def test_a_package_without_a_folder_of_any_kind_is_refused(brought):
    package = brought({"method/circle.py": PLUGIN.format(size=4)})
    with pytest.raises(
        UsageError, match=rf"the package {package} of {package} has no plug-ins: it needs a folder methods, .* or tune_spaces"
    ):
        plugin_names("ray_sassl.methods")


def test_a_config_is_reduced_if_it_allows_that(package):
    class Config(PluginConfig):
        size: int = Field(default=20, ge=10)
        width: int = 20
        share: float = 20.0
        is_on: bool = True

    assert Config().reduced(8) == Config(width=8)
    assert Config().reduced(12) == Config(width=12, size=12)
