"""The commands that the pages, the help and the definitions show: they exist, and pretrainings on one's own images look for no others."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.main import get_command

import ray_sassl
from ray_sassl.cli import app, jobs
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.orchestrate.jobs.checks import check_resources
from ray_sassl.runs.configs import load_config
from ray_sassl.runs.recipe import MIN_IMAGES, Machine, choose_recipe

ROOT = Path(__file__).resolve().parents[2]


PAGES = ("README.md", "cluster/README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
_NOT_A_COMMAND = re.compile(r"\.\.\.|\bPROTOCOL\b|\[FIELD")
"""Lines that show a command's form."""


def _texts() -> dict[str, str]:
    """Each with a command on one line."""
    found = {page: (ROOT / page).read_text() for page in PAGES}
    found["job --help"] = str(jobs.app.info.help)
    found["job submit --help"] = next(str(command.epilog) for command in jobs.app.registered_commands if command.name == "submit")
    found["rayjob.yaml"] = yaml.safe_load((ROOT / "cluster/kuberay/job/rayjob.yaml").read_text())["spec"]["entrypoint"]
    return {name: re.sub(r"\\?\n {6,}", " ", text) for name, text in found.items()}


def _commands(text: str) -> list[list[str]]:
    """The words after `ray-sassl` in each command of the indented and fenced blocks, where it is not a form to be filled in."""
    found = []
    for block in re.findall(r"(?:^ {4}.*\n)+|^```.*\n[\s\S]*?^```", text, re.MULTILINE):
        for line in block.splitlines():
            for part in re.split(r"&&|\|", line.partition(" #")[0]):
                if part.strip().startswith("ray-sassl ") and not _NOT_A_COMMAND.search(part):
                    found.append(shlex.split(part.removesuffix("&"))[1:])
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_have_verbs_and_options_that_exist(page: str):
    for words in _commands(_texts()[page]):
        _parse(words)


def test_the_nightly_search_is_a_search_of_its_experiment():
    entrypoint = yaml.safe_load((ROOT / "cluster/kuberay/nightly/raycronjob.yaml").read_text())["spec"]["jobTemplate"]["entrypoint"]
    words = shlex.split(entrypoint)
    _parse(["search", "run", *words[2:]])
    experiment = words[words.index("--experiment") + 1]
    config = load_config(experiment, [word for word in words if re.match(r"[a-z_.]+=", word)])
    assert str(config.evaluate.test.path if config.evaluate.test else "").startswith("s3://")


def test_a_verb_or_an_option_that_does_not_exist_is_found_out():
    for words, name in ((["evaluate", "runs/first", "knn", "--baseline"], "NoSuchOption"), (["jobs", "list"], "UsageError")):
        with pytest.raises(Exception, match="No such") as raised:
            _parse(words)
        assert type(raised.value).__name__ == name


def _parse(words: list[str]) -> None:
    """Parse a command as the program does, without running it.

    Raises:
        click's UsageError: there is no such verb, option or argument.
    """
    command: Any = get_command(app)
    context: Any = None
    while True:
        context = command.make_context(str(command.name), words, parent=context)
        if not hasattr(command, "resolve_command"):
            return
        _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])


def test_the_commands_of_the_pages_are_found():
    assert sum(len(_commands(text)) for text in map(_texts().get, PAGES) if text) > 70


def test_the_api_page_has_every_public_name():
    public = {name: getattr(ray_sassl, name) for name in ray_sassl.__all__}
    places = re.findall(r"^::: ([\w.]+)\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert sorted(name for _, name in places) == sorted(public)
    for place, name in places:
        assert getattr(importlib.import_module(place), name) is public[name]
        assert public[name].__doc__


def _pretrainings(text: str) -> list[ExperimentConfig]:
    """On the data that the command names."""
    found = []
    for line in re.findall(r"ray-sassl (?:job submit .*-- )?pretrain (.+)", text):
        experiment, *words = shlex.split(line.partition(" #")[0])
        overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
        if any(word.startswith("data.path=") for word in overrides):
            found.append(load_config(experiment, overrides))
    return found


@pytest.mark.parametrize(
    "source", ["docs/clusters.md", "docs/first-run.md", "docs/jobs.md", "job --help", "job submit --help", "rayjob.yaml"]
)
def test_a_pretraining_on_ones_own_images_is_not_scored_on_others(source: str):
    configs = _pretrainings(_texts()[source])
    assert configs
    for config in configs:
        for scored in (config.evaluate.train, config.evaluate.test):
            assert scored is None or str(scored.path).startswith("s3://")


def test_a_pretraining_of_photographs_takes_its_overrides_and_no_ray_on_a_laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "photos").mkdir()
    for number in range(MIN_IMAGES):
        Image.new("RGB", (120, 100), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"ray-sassl pretrain photos/(.*)", "\n".join(_texts()[page] for page in PAGES))
    assert len(lines) > 3
    for line in lines:
        overrides = [word for word in shlex.split(line.partition(" #")[0]) if re.match(r"(?!backbone)[a-z_.]+=", word)]  # no network
        assert choose_recipe("photos/", overrides, Machine()).config.scaling.num_workers == 0


def test_the_pretraining_at_224_px_has_room_on_two_gpus():
    check_resources(_pretrainings(_texts()["docs/first-run.md"])[0], {"CPU": 8.0, "GPU": 2.0}, is_all=True)
