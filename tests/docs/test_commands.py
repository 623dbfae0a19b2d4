"""The pretrainings that the pages, the help and the definitions show: on images of one's own they look for no others."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ray_sassl.cli import jobs
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.orchestrate.jobs.checks import check_resources
from ray_sassl.runs.configs import load_config
from ray_sassl.runs.recipe import MIN_IMAGES, Machine, choose_recipe

ROOT = Path(__file__).resolve().parents[2]


def _texts() -> dict[str, str]:
    """Each with a command on one line."""
    found = {page: (ROOT / page).read_text() for page in ("README.md", "docs/jobs.md")}
    found["job --help"] = str(jobs.app.info.help)
    found["job submit --help"] = next(str(command.epilog) for command in jobs.app.registered_commands if command.name == "submit")
    found["rayjob.yaml"] = yaml.safe_load((ROOT / "cluster/kuberay/rayjob.yaml").read_text())["spec"]["entrypoint"]
    return {name: re.sub(r"\\?\n {6,}", " ", text) for name, text in found.items()}


def _pretrainings(text: str) -> list[ExperimentConfig]:
    """On the data that the command names."""
    found = []
    for line in re.findall(r"ray-sassl (?:job submit .*-- )?pretrain (.+)", text):
        experiment, *words = shlex.split(line.partition(" #")[0])
        overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
        if any(word.startswith("data.path=") for word in overrides):
            found.append(load_config(experiment, overrides))
    return found


@pytest.mark.parametrize("source", _texts())
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
    lines = re.findall(r"ray-sassl pretrain photos/(.*)", _texts()["README.md"])
    assert lines
    for line in lines:
        overrides = [word for word in shlex.split(line.partition(" #")[0]) if re.match(r"(?!backbone)[a-z_.]+=", word)]  # no network
        assert choose_recipe("photos/", overrides, Machine()).config.scaling.num_workers == 0


def test_the_pretraining_at_224_px_has_room_on_two_gpus():
    check_resources(_pretrainings(_texts()["README.md"])[0], {"CPU": 8.0, "GPU": 2.0}, is_all=True)
