"""The metrics that a run exports are those that the dashboard draws, and cost it nothing that counts."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ray_sassl.orchestrate.runtime.metrics import ALL, usd_per_hour
from tests.orchestrate.conftest import write_shards
from tests.orchestrate.job_cluster import JobCluster, job_cluster, ray_sassl

_DASHBOARD = json.loads((Path(__file__).parents[3] / "cluster" / "grafana.json").read_text())


def _drawn() -> set[str]:
    """The names of metrics in the dashboard's expressions."""
    expressions = [target["expr"] for panel in _DASHBOARD["panels"] for target in panel["targets"]]
    expressions += [variable["definition"] for variable in _DASHBOARD["templating"]["list"] if "definition" in variable]
    return {name for text in expressions for name in re.findall(r"\bray_\w+", text)}


def test_the_dashboard_draws_exactly_what_is_exported():
    assert _drawn() == {metric.exported_name for metric in ALL}


def test_alerts_are_about_metrics_that_exist_and_each_has_its_line_of_advice():
    root = Path(__file__).parents[3]
    (group,) = yaml.safe_load((root / "cluster/kuberay/base/alerts.yaml").read_text())["spec"]["groups"]
    of_ray = {"ray_object_store_memory", "ray_io_cluster"}
    named = {name for rule in group["rules"] for name in re.findall(r"\bray_\w+", rule["expr"])}
    assert named - of_ray < {metric.exported_name for metric in ALL}
    advice = (root / "docs/jobs.md").read_text()
    assert all(f"| `{rule['alert']}` |" in advice for rule in group["rules"])


def test_the_dashboard_groups_by_labels_that_the_metrics_have():
    labels = {metric.exported_name: set(metric.labels) for metric in ALL}
    for panel in _DASHBOARD["panels"]:
        for target in panel["targets"]:
            (name,) = re.findall(r"\bray_\w+", target["expr"])
            grouped = re.search(r"by \(([^)]*)\)", target["expr"])
            assert grouped is not None
            assert {label.strip() for label in grouped[1].split(",")} <= labels[name], target["expr"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels[name], target["legendFormat"]


def test_the_dashboard_has_panels_side_by_side_and_not_on_one_another():
    taken: set[tuple[int, int]] = set()
    for panel in _DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_cost_is_known_where_every_node_has_a_price():
    prices = {"head": 0.5, "train": 20.0}
    assert usd_per_hour(["head", "train", "train"], prices) == 40.5
    assert usd_per_hour(["head", "stylize"], prices) is None
    assert usd_per_hour([], prices) == 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster(labels={"ray-sassl/group": "train"}) as cluster:
        yield cluster


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.chaos
def test_a_small_run_shows_every_metric_on_the_nodes_endpoint(cluster: JobCluster, tmp_path: Path):
    paths = write_shards(tmp_path, bad=(3,))
    (tmp_path / "prices.yaml").write_text("train: {cpus: 2, usd_per_hour: 3.6}\n")
    words = [
        "pretrain", "moco_cifar10_cpu_sassl", f"data.path={paths}", f"evaluate.train.path={paths}", "evaluate.test=null",
        "method.queue_size=32", "method.projector_hidden_size=16", "train.global_batch=16", "train.log_every=1", "train.epochs=400",
        "train.evaluate_every=10", "views.size_px=16", "evaluate.size_px=16", "scaling.threads_per_worker=1", "scaling.cpus_per_worker=0.5",
        "stream.num_cpus=0.5", "stylize=color_statistics", "stream.layout=pool", "stream.pool.num_cpus=0.5",
        "tracking.tensorboard=false", "tracking.prices=prices.yaml",
        "--run-dir", str(tmp_path / "shown"),
    ]  # fmt: skip
    code, output = ray_sassl(cluster, "job", "submit", "--name", "shown", "--", *words, cwd=tmp_path)
    assert code == 0, output
    try:
        wanted = {metric.exported_name for metric in ALL}
        until = time.monotonic() + 480
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        while time.monotonic() < until and not (wanted <= found.keys() and _stages(found) == {"decode", "stylize", "train"}):
            time.sleep(2)
            found = _scraped(cluster.metrics(), "shown")
        assert wanted <= found.keys(), wanted - found.keys()
        assert _stages(found) == {"decode", "stylize", "train"}
    finally:
        code, output = ray_sassl(cluster, "job", "stop", "shown", cwd=tmp_path)
    assert code == 0, output
    values = {name: value for name, [(_, value), *_] in found.items()}
    assert values["ray_sassl_quarantined_rows"] == 1
    assert 0 <= values["ray_sassl_data_wait_share"] <= 1
    assert values["ray_sassl_chance_loss"] > 1
    assert values["ray_sassl_usd_per_million_images"] > 0
    log = [json.loads(line) for line in (tmp_path / "shown" / "metrics.jsonl").read_text().splitlines()]
    assert values["ray_sassl_loss"] in [pytest.approx(line["loss"]) for line in log if "loss" in line]


def _stages(found: dict[str, list[tuple[dict[str, str], float]]]) -> set[str]:
    return {labels["stage"] for labels, value in found.get("ray_sassl_images_total", []) if value > 0}


def _scraped(text: str, run: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The run's metrics in Prometheus' text format, by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for name, inner, value in re.findall(r"^(ray_sassl_\w+)\{([^}]*)\} (\S+)$", text, re.MULTILINE):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', inner))
        if labels.get("run") == run:
            found.setdefault(name, []).append((labels, float(value)))
    return found
