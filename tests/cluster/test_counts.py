"""Numbers of nodes in definition files: set where they stand, and nothing else touched."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
import yaml

from ray_sassl.cluster.check import check_text
from ray_sassl.cluster.counts import write_counts
from ray_sassl.cluster.groups import groups_of, offered_by
from ray_sassl.process.errors import UsageError

CLUSTER = Path(__file__).parents[2] / "cluster"
COUNTS = {"decode": 5, "stylize": 3, "train": 2}


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "kuberay/base/raycluster.yaml", "kuberay/job/rayjob.yaml"])
def test_counts_are_written_and_the_rest_stays_as_it_was(name: str):
    text = (CLUSTER / name).read_text()
    written = write_counts(text, name, COUNTS)
    (document,) = yaml.safe_load_all(written)
    assert {group.name: group.max_nodes for group in groups_of(document) if not group.is_head} == COUNTS
    changed = [line for line in difflib.ndiff(text.splitlines(), written.splitlines()) if line.startswith("+ ")]
    assert all(any(field in line for field in ("max_workers", "eplicas")) for line in changed)
    problems = [finding for finding in check_text(written, name, "2.60.0", None, lambda config: []) if not finding.is_note]
    assert problems == []


def test_the_cluster_may_have_as_many_workers_as_its_groups():
    written = yaml.safe_load(write_counts((CLUSTER / "aws.yaml").read_text(), "aws", {"decode": 5}))
    assert written["max_workers"] == 5 + 8 + 4


def test_a_group_of_fixed_size_gets_exactly_so_many():
    written = yaml.safe_load(write_counts((CLUSTER / "kuberay/job/rayjob.yaml").read_text(), "job", {"stylize": 7}))
    group = written["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (7, 7, 7)


def test_empty_documents_before_the_cluster_are_passed_over():
    job = (CLUSTER / "kuberay/job/rayjob.yaml").read_text()
    before = "---\n# Source: chart/templates/nothing.yaml\n---\n# nor here\n---\n"
    assert write_counts(before + job, "job", COUNTS) == before + write_counts(job, "job", COUNTS)


def test_a_minimum_above_the_new_number_comes_down_with_it():
    text = (CLUSTER / "aws.yaml").read_text().replace("min_workers: 0\n    max_workers: 16", "min_workers: 9\n    max_workers: 16")
    assert yaml.safe_load(write_counts(text, "aws", {"decode": 5}))["available_node_types"]["decode"]["min_workers"] == 5


def test_files_that_have_no_place_for_the_numbers_are_refused():
    text = (CLUSTER / "aws.yaml").read_text()
    with pytest.raises(UsageError, match="has no group decoders; its groups are head, decode, stylize, train"):
        write_counts(text, "aws", {"decoders": 1})
    with pytest.raises(UsageError, match=r"does not set available_node_types.decode.max_workers"):
        write_counts(text.replace("    max_workers: 16\n", ""), "aws", {"decode": 1})
    with pytest.raises(UsageError, match="there is no number to replace at max_workers"):
        write_counts(text.replace("\nmax_workers: 28\n", "\nmax_workers: [28]\n"), "aws", {"decode": 1})
    with pytest.raises(UsageError, match="defines no cluster"):
        write_counts("a: 1", "it", {"decode": 1})


def test_what_a_cluster_offers_is_counted_at_its_largest():
    def offers(name: str) -> dict[str, float]:
        return offered_by(groups_of(yaml.safe_load((CLUSTER / name).read_text())))

    assert offers("aws.yaml") == {"CPU": 16 * 16 + 8 * 4 + 4 * 96, "GPU": 8 + 4 * 8}
    assert offers("kuberay/base/raycluster.yaml") == {"CPU": 16 * 15 + 8 * 3 + 4 * 95, "GPU": 8 + 4 * 8}
