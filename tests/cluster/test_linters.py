"""What others trust says of the shipped files: yamllint, hadolint and promtool; each also finds a broken copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "cluster/kuberay/base/alerts.yaml"
SERIES = {
    "RaySasslNoStep": ('ray_sassl_step{run="a"}', "5x60"),
    "RaySasslDataWait": ('ray_sassl_data_wait_share{run="a"}', "0.4x60"),
    "RaySasslCollapse": ('ray_sassl_effective_rank{run="a"}', "1.2x60"),
    "RaySasslQuarantine": ('ray_sassl_quarantined_rows{run="a"}', "0+3x60"),
    "RaySasslSpilling": ('ray_object_store_memory{Location="SPILLED",ray_io_cluster="a"}', "2000000000x60"),
    "RaySasslNodesPending": ('autoscaler_pending_nodes{NodeType="train"}', "1x60"),
}
"""A series for each alert that must set it off within half an hour."""
HEALTHY = {
    'ray_sassl_step{run="a"}': "0+100x60",
    'ray_sassl_data_wait_share{run="a"}': "0.02x60",
    'ray_sassl_effective_rank{run="a"}': "60x60",
    'ray_sassl_quarantined_rows{run="a"}': "3x60",
    'ray_object_store_memory{Location="SPILLED",ray_io_cluster="a"}': "0x60",
    'autoscaler_pending_nodes{NodeType="train"}': "0x60",
}


def _tool(name: str) -> str:
    """The path of a tool beside this Python, or elsewhere; without it the test is skipped."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not here")
    return found


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_yamllint_finds_nothing_in_the_definitions_and_a_key_given_twice(tmp_path: Path):
    lint = (_tool("yamllint"), "--strict", "--config-file", str(ROOT / ".yamllint"))
    good = _run(*lint, "cluster", "mkdocs.yml")
    assert good.returncode == 0, good.stdout
    for name, old, new in (
        ("aws.yaml", "max_workers:", "max_workers: 1\nmax_workers:"),
        ("kuberay/base/namespace.yaml", "  name:", "   name:\tx"),
    ):
        (tmp_path / "broken.yaml").write_text((ROOT / "cluster" / name).read_text().replace(old, new, 1))
        assert _run(*lint, str(tmp_path / "broken.yaml")).returncode != 0


def test_hadolint_finds_nothing_in_the_image_and_an_unpinned_base(tmp_path: Path):
    # `cd` holds for one RUN, and WORKDIR for all that follow.
    lint = (_tool("hadolint"), "--no-color", "--ignore", "DL3003")
    good = _run(*lint, "cluster/Dockerfile")
    assert good.returncode == 0, good.stdout
    text = (ROOT / "cluster/Dockerfile").read_text()
    base = next(line for line in text.splitlines() if line.startswith("FROM"))
    (tmp_path / "Dockerfile").write_text(text.replace(base, "FROM rayproject/ray:latest"))
    assert "DL3007" in _run(*lint, str(tmp_path / "Dockerfile")).stdout


def test_promtool_reads_the_scraping_and_finds_a_misspelled_field(tmp_path: Path):
    check = (_tool("promtool"), "check", "config")
    assert _run(*check, "cluster/prometheus.yaml").returncode == 0
    (tmp_path / "broken.yaml").write_text((ROOT / "cluster/prometheus.yaml").read_text().replace("scrape_interval", "scrape_intervall"))
    assert _run(*check, str(tmp_path / "broken.yaml")).returncode != 0


def _alerts(tmp_path: Path, series: dict[str, str], expected: list[str]) -> subprocess.CompletedProcess[str]:
    """promtool's test of which alerts fire after half an hour of these series."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(yaml.safe_load(ALERTS.read_text())["spec"]))
    query: dict[str, Any] = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "30m"}
    query["exp_samples"] = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in expected]
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    tests = [{"interval": "1m", "input_series": inputs, "promql_expr_test": [query]}]
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    return _run(_tool("promtool"), "test", "rules", str(tmp_path / "tests.yaml"))


def test_there_is_a_series_for_every_alert():
    (group,) = yaml.safe_load(ALERTS.read_text())["spec"]["groups"]
    assert SERIES.keys() == {rule["alert"] for rule in group["rules"]}


@pytest.mark.parametrize("alert", SERIES)
def test_an_alert_fires_alone_on_what_it_is_for(alert: str, tmp_path: Path):
    name, values = SERIES[alert]
    fired = _alerts(tmp_path, HEALTHY | {name: values}, [alert])
    assert fired.returncode == 0, fired.stdout + fired.stderr


def test_no_alert_fires_for_a_healthy_run_and_a_wrong_expectation_is_found(tmp_path: Path):
    silent = _alerts(tmp_path, HEALTHY, [])
    assert silent.returncode == 0, silent.stdout + silent.stderr
    assert _alerts(tmp_path, HEALTHY, ["RaySasslNoStep"]).returncode != 0
