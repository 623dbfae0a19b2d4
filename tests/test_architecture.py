"""The rules that the packages follow: which way imports point, who reaches Ray and torch, and what a plug-in is."""

import ast
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation
from ray_sassl.methods import MethodConfig
from ray_sassl.nn.method import Method
from ray_sassl.plugins import PluginConfig, load_plugin, plugin_names
from ray_sassl.style.stylizers import Stylizer, StylizerConfig

ROOT = Path(__file__).resolve().parents[1]
CONTRACTS = {
    "ray_sassl.methods": (MethodConfig, Method),
    "ray_sassl.style.stylizers": (StylizerConfig, Stylizer),
    "ray_sassl.evaluation.protocols": (ProtocolConfig, Protocol),
    "ray_sassl.feature_aug": (FeatureAugConfig, FeatureAugmentation),
}
PLUGINS = [(package, name) for package in CONTRACTS for name in plugin_names(package)]
each_plugin = pytest.mark.parametrize(("package", "name"), PLUGINS)


def _loaded_after(statement: str, *modules: str) -> set[str]:
    """Which of the modules a fresh process has loaded after the statement."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {modules!r} if name in sys.modules])"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split())


def test_imports_keep_to_the_contracts():
    linter = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", linter], check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


def test_no_room_is_imported_by_its_name_past_the_contracts():
    hidden = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "ray_sassl").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and "import" in ast.unparse(node.func)
        if node.args and isinstance(node.args[0], ast.Constant) and str(node.args[0].value).startswith("ray_sassl")
    ]
    assert hidden == []


@pytest.mark.slow
def test_reading_tasks_reach_ray_and_never_torch():
    assert _loaded_after("import ray_sassl.orchestrate.pretraining.reading", "ray", "torch") == {"ray"}


def test_the_flow_up_to_the_crops_never_reaches_torch_or_ray():
    assert _loaded_after("import ray_sassl.pipeline", "ray", "torch", "torchvision") == set()


def test_the_schema_of_configs_reaches_torch_only_through_plugins():
    assert _loaded_after("import ray_sassl.config.schema, ray_sassl.config.roles, ray_sassl.runs.record", "ray", "torch") == set()


@pytest.mark.slow
def test_a_run_in_one_process_never_reaches_ray():
    statement = "import ray_sassl.runs.directory, ray_sassl.runs.pictures; from ray_sassl.experiments import experiments; experiments()"
    assert _loaded_after(statement, "ray", "torch") == {"torch"}


@pytest.mark.slow
def test_a_runs_processes_load_nothing_slow_that_they_may_not_need():
    assert _loaded_after("import ray_sassl.orchestrate.pretraining.launch", "torch", "torchvision", "sklearn", "timm", "torch._dynamo") == {
        "torch"
    }


@each_plugin
def test_a_plugins_config_keeps_to_the_contract_and_builds_one_final_class(package, name):
    module, (config_contract, contract) = load_plugin(package, name), CONTRACTS[package]
    assert issubclass(module.Config, config_contract)
    assert not inspect.isabstract(module.Config)
    built = typing.get_type_hints(module.Config.build)["return"]
    assert issubclass(built, contract)
    # In the plug-in's own file, or in one beside it that several plug-ins use and that is none itself.
    assert built.__module__ == module.__name__ or built.__module__.rpartition(".")[2] not in plugin_names(package)
    assert not inspect.isabstract(built)
    assert built.__subclasses__() == []


@each_plugin
def test_every_field_of_a_plugin_has_a_default(package, name):
    config = load_plugin(package, name).Config()
    assert isinstance(config, PluginConfig)
    assert config.name == name


@pytest.mark.parametrize("package", CONTRACTS)
def test_a_contract_is_abstract(package):
    assert all(inspect.isabstract(contract) for contract in CONTRACTS[package])


@each_plugin
def test_plugins_of_a_kind_do_not_know_each_other(package, name):
    source = Path(str(load_plugin(package, name).__file__)).read_text()
    for other in set(plugin_names(package)) - {name}:
        assert f"{package}.{other}" not in source
        assert f"from {package} import {other}" not in source


def test_no_package_has_a_drawer_for_everything():
    names = {path.name for folder in ("ray_sassl", "tune_spaces") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"utils.py", "misc.py", "helpers.py", "common.py"}


def test_only_one_module_takes_anything_from_rays_private_packages():
    private = ("._private", "._internal", ".core.generated", "ray._raylet", "ray._common")
    for path in [*(ROOT / "ray_sassl").rglob("*.py"), *(ROOT / "tune_spaces").rglob("*.py")]:
        if path == ROOT / "ray_sassl" / "orchestrate" / "runtime" / "private.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                taken = [name for name in names if name.partition(".")[0] == "ray" and any(part in name for part in private)]
                assert not taken, f"{path.relative_to(ROOT)}:{node.lineno} imports {', '.join(taken)}"


def test_the_private_names_of_ray_that_we_use_exist():
    from ray_sassl.orchestrate.runtime import private

    assert sorted(private._HOME) == sorted(private.__all__)
    assert all(getattr(private, name) is not None for name in private.__all__)
