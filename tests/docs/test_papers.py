"""What the page on the papers names is there: files, functions, fields of the config and experiments."""

import ast
import re
from pathlib import Path

import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.experiments import experiments, load_experiment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "papers.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", PAGE)
FILES = sorted({text.partition(":")[0] for text in CODE if re.fullmatch(r"[\w/]+\.py(:[\w.]+)?", text)})
NAMES = sorted({text for text in CODE if re.fullmatch(r"[\w/]+\.py:[\w.]+", text)})
EXPERIMENTS = sorted({text for text in CODE if re.fullmatch(r"\w+_(cifar10|imagenet|imagenet100)(_cpu|_1000)?(_sassl(_[a-z]+)?)?", text)})
SETTINGS = sorted({text for text in CODE if re.fullmatch(r"(fa|method|views|train|sassl)\b[\w.]*=[\w.]+", text)})


def _path(file: str) -> Path:
    """Files stand below `ray_sassl/`, or below the root where the path says so."""
    inside = ROOT / "ray_sassl" / file
    return inside if inside.exists() else ROOT / file


def _definitions(tree: ast.Module | ast.ClassDef) -> dict[str, ast.stmt]:
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("file", FILES)
def test_every_file_exists(file):
    assert _path(file).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_every_function_and_class_exists(name):
    file, _, dotted = name.partition(":")
    inside: ast.Module | ast.ClassDef | None = ast.parse(_path(file).read_text())
    for part in dotted.split("."):
        assert inside is not None
        found = _definitions(inside).get(part)
        assert found is not None, f"{file} defines no {part}"
        inside = found if isinstance(found, ast.ClassDef) else None


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_exists(name):
    assert name in experiments()


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_one(setting):
    path = f"method.{setting}" if setting.startswith("fa.") else setting
    changes = [path] if path.startswith(("views", "train")) else ["method.fa.augmentation=mask", path]
    base = "simclr_fa_imagenet100" if not path.startswith("sassl") else "moco_imagenet_sassl"
    config = load_experiment(base)
    changes += ["sassl.bank=styles.safetensors"] if path.startswith("sassl") else []
    assert apply_overrides(config, changes) is not None


def test_every_experiment_with_style_or_feature_augmentation_is_named():
    both = {name for name in experiments() if "_sassl" in name or "_fa_" in name or name.startswith("nnclr")}
    assert both <= set(EXPERIMENTS)


@pytest.mark.parametrize("part", ["methods", "feature_aug", "style", "views"])
def test_every_file_in_a_table_that_differs_from_its_paper_is_named_among_the_differences(part):
    """What evaluation differs in stands on its own page, and a plug-in that the tables do not name says it in its file alone."""
    in_tables, in_lists = (_files_of(part, start) for start in ("|", "- "))
    differing = {file for file in in_tables if "Differs from" in _path(file).read_text()}
    assert differing <= in_lists
    assert differing or part not in ("methods", "feature_aug")


def test_every_method_that_is_said_to_differ_says_so():
    section = PAGE.partition("## The objectives' own papers")[2].partition("\n## ")[0]
    named = re.findall(r"`(methods/\w+\.py)`", section)
    assert len(named) > 5
    assert all("Differs from" in _path(file).read_text() for file in named)


def _files_of(part: str, start: str) -> set[str]:
    """The files of a folder that are named in lines which begin so."""
    text = "\n".join(line for line in PAGE.splitlines() if line.startswith(start))
    return set(re.findall(rf"`({part}/[\w/]+\.py)", text))


def test_the_page_names_something_of_each_kind():
    assert min(len(FILES), len(NAMES), len(EXPERIMENTS), len(SETTINGS)) > 5
