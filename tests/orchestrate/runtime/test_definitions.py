"""What the installed Ray says of launcher files, and the command; no cluster is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from typer.testing import CliRunner

from ray_sassl.cli.cluster import app
from ray_sassl.orchestrate.runtime.definitions import check_files, read_definition
from ray_sassl.process.errors import UsageError

CLUSTER = Path(__file__).parents[3] / "cluster"


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_reads_every_launcher_file_that_is_shipped(name: str):
    path = str(CLUSTER / name)
    assert check_files([path], None) == {path: []}


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_rays_autoscaler_finds_the_image_of_every_group(name: str):
    config = yaml.safe_load((CLUSTER / name).read_text())
    found = AutoscalingConfig(prepare_config(config), skip_content_hash=True)
    images = {found.get_docker_config(group)["image"] for group in config["available_node_types"]}
    assert images == {config["docker"]["image"]}


def test_groups_with_gpus_on_google_cloud_wait_for_their_driver():
    config = AutoscalingConfig(prepare_config(yaml.safe_load((CLUSTER / "gcp.yaml").read_text())), skip_content_hash=True)
    waits = {group: "nvidia-smi" in " ".join(config.get_initialization_commands(group)) for group in ("head", "decode", "stylize", "train")}
    assert waits == {"head": False, "decode": False, "stylize": True, "train": True}


BROKEN = {
    "misspelled field": ({"max_worker": 3}, "Additional properties are not allowed"),
    "no provider": ({"provider": {}}, "KeyError: 'type'"),
    "text for a number": ({"max_workers": "many"}, "'many' is not of type 'integer'"),
    "a head that is not there": ({"head_node_type": "heat"}, "`head_node_type` must be one of"),
    "a list for a mapping": ({"available_node_types": []}, "Ray"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_rays_schema_refuses_is_refused(case: str, tmp_path: Path):
    changes, reason = BROKEN[case]
    path = tmp_path / "broken.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((CLUSTER / "aws.yaml").read_text()) | changes))
    (findings,) = check_files([str(path)], None).values()
    assert any(reason in finding.text for finding in findings), findings


def test_files_that_cannot_be_definitions_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no file"):
        read_definition(str(tmp_path / "nothing.yaml"))
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UsageError, match="at most 1,048,576 are read"):
        read_definition(str(tmp_path / "large.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not text"):
        read_definition(str(tmp_path / "binary.yaml"))


def test_the_command_lists_problems_and_fails(tmp_path: Path):
    good, bad = CLUSTER / "aws.yaml", tmp_path / "bad.yaml"
    bad.write_text(good.read_text().replace("max_workers: 16", "max_workers: -16"))
    run = (
        CliRunner().invoke(app, ["check", str(good), str(bad)])
        if len(app.registered_commands) > 1
        else CliRunner().invoke(app, [str(good), str(bad)])
    )
    assert run.exit_code == 1
    assert f"{good}: good" in run.output
    assert f"{bad}: 1 problems" in run.output
    assert "available_node_types.decode.max_workers: -16 is negative" in run.output
