"""Which KubeRay a manifest needs: the docs say it, and `cluster check` finds files that an older one would cut down without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.check import check_text, rules_of
from ray_sassl.cluster.crds import Schemas
from ray_sassl.cluster.findings import at
from ray_sassl.cluster.groups import JOBS, SPECS
from ray_sassl.cluster.releases import _CLUSTER, _GROUP, _JOB, gates, needs, newest, parsed
from ray_sassl.process.errors import UsageError

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "cluster/kuberay"
NEEDED = {"base/raycluster.yaml": "1.5.1", "job/rayjob.yaml": "1.5.1", "nightly/raycronjob.yaml": "1.6.0"}


def _manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((KUBERAY / name).read_text())


@pytest.mark.parametrize("name", NEEDED)
def test_the_shipped_files_need_the_operator_that_the_docs_name(name: str):
    assert newest(needs(_manifest(name))) == NEEDED[name]
    assert NEEDED[name] in (ROOT / "docs/clusters.md").read_text()


@pytest.mark.parametrize("name", NEEDED)
def test_an_older_operator_is_a_problem_and_this_one_is_none(name: str, schemas: Schemas):
    text = (KUBERAY / name).read_text()
    assert check_text(text, name, "2.60.0", schemas, lambda config: [], NEEDED[name]) == []
    older = [finding.text for finding in check_text(text, name, "2.60.0", schemas, lambda config: [], "v1.5.0")]
    assert older
    assert all(text.endswith("is the first that knows it, and yours is v1.5.0") for text in older)


def test_every_field_of_the_table_is_in_the_crds(schemas: Schemas):
    for kind, path in SPECS.items():
        if kind not in JOBS:
            continue
        job = _schema(schemas["ray.io/v1", kind], JOBS[kind])
        cluster = _schema(schemas["ray.io/v1", kind], path)
        groups = [_schema(cluster, "headGroupSpec"), _schema(cluster, "workerGroupSpecs")["items"]]
        assert all(_has(job, name) for name in _JOB)
        assert all(_has(cluster, name) for name in _CLUSTER)
        assert all(any(_has(group, name) for group in groups) for name in _GROUP)


def test_crds_that_lack_a_field_say_which_operator_has_it(schemas: Schemas):
    kind = ("ray.io/v1", "RayCluster")
    schema = schemas[kind]
    spec = schema["properties"]["spec"]
    fewer = {name: value for name, value in spec["properties"].items() if name != "authOptions"}
    old: Schemas = {kind: schema | {"properties": schema["properties"] | {"spec": spec | {"properties": fewer}}}}
    (finding,) = check_text((KUBERAY / "base/raycluster.yaml").read_text(), "the file", "2.60.0", old, lambda config: [])
    assert finding.where == "spec.authOptions"
    assert finding.text.endswith("; KubeRay 1.5.1 is the first that knows it")
    (finding,) = check_text((KUBERAY / "nightly/raycronjob.yaml").read_text(), "the file", "2.60.0", old, lambda config: [])
    assert "the CRDs have no RayCronJob of ray.io/v1, which KubeRay 1.6.0 is the first to know" in finding.text


def test_a_feature_that_the_operator_has_switched_off_is_named():
    assert gates(needs(_manifest("nightly/raycronjob.yaml"))) == ["RayCronJob"]
    text = (KUBERAY / "nightly/raycronjob.yaml").read_text()
    rules = rules_of(text, "the file", has_schemas=False)
    assert "which KubeRay it needs: 1.6.0 or newer with --feature-gates=RayCronJob=true, for RayCronJob" in rules


def test_a_nightly_run_needs_a_deadline_and_cannot_be_queued():
    manifest = _manifest("nightly/raycronjob.yaml")
    del manifest["spec"]["jobTemplate"]["activeDeadlineSeconds"]
    manifest["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "x"}
    found = check_text(yaml.safe_dump(manifest), "the file", "2.60.0", None, lambda config: [])
    problems = [finding.text for finding in found if not finding.is_note]
    assert len(problems) == 2
    assert "starts a run although the last one has not ended" in problems[0]
    assert "Kueue does not queue them" in problems[1]


@pytest.mark.parametrize("version", ["latest", "1", "", "1.x"])
def test_a_version_that_is_none_is_refused(version: str):
    with pytest.raises(UsageError, match="is not a version of KubeRay"):
        parsed(version)


def _schema(schema: dict[str, Any], path: str) -> dict[str, Any]:
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema


def _has(schema: dict[str, Any], path: str) -> bool:
    return at(schema, "properties." + path.replace(".", ".properties.")) is not None
