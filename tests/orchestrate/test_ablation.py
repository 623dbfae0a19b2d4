"""A table from its arms to its intervals, on Ray Tune: real runs of a tiny network, continued with more seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.results import read_scores
from ray_sassl.experiments.ablations import Ablation, Arm
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.record import read_run
from ray_sassl.study.ablation_table import as_page, read_table
from ray_sassl.study.record import read_trials, write_trial
from tests.orchestrate.conftest import small_config, write_held_shards, write_shards

pytestmark = pytest.mark.ray

ARMS = [
    Arm("none & <b>nothing</b>", ("stylize=identity",)),
    Arm("style"),
    Arm("fda", ("stylize=fda",), dose_of="style", against=("none & <b>nothing</b>", "style")),
]
TABLE = Ablation("mine", "Mine.", {}, lambda base: ARMS, ("knn",))


def _base(folder: Path) -> ExperimentConfig:
    base = small_config(write_shards(folder), epochs=1, num_workers=0)
    test = write_held_shards(folder)
    return apply_overrides(base, ["stylize=color_statistics", "views=moco_v2_32", "views.size_px=16", f"evaluate.test={{path: '{test}'}}"])


def _run(base: ExperimentConfig, place: Path, seeds: int, **how) -> ray_sassl.api.ablations.AblationResult:
    return ray_sassl.ablation(TABLE, str(place), seeds=seeds, experiment=base, protocols=[Knn(k=5)], max_concurrent=2, **how)


@pytest.mark.slow
def test_a_table_is_trained_evaluated_written_and_continued(ray_cluster: None, tmp_path: Path):
    (tmp_path / "data").mkdir()
    base, place = _base(tmp_path / "data"), tmp_path / "table"
    first = _run(base, place, 1)
    assert (first.is_interrupted, first.table.missing) == (False, [])
    assert [(line.arm, line.against, line.num_runs) for line in first.table.lines] == [
        (ARMS[0].name, None, 1),
        ("style", ARMS[0].name, 1),
        ("fda", ARMS[0].name, 1),
        ("fda", "style", 1),
    ]
    runs = [read_run(str(place / "trials" / f"{number:04d}")) for number in range(3)]
    doses = [first.table.doses[name][0] for name in ("style", "fda")]
    assert ARMS[0].name not in first.table.doses
    assert doses[1] == pytest.approx(doses[0], rel=0.25)  # matched on the first block with its noise images, measured on 64 of another
    for run in runs:  # nothing is chosen by the test images, which give the final scores alone
        assert run.part("evaluate")["final_test"] is False
        assert not any(name.startswith("test_") for line in run.metrics for name in line)
    strengths = [run.part("sassl")["alpha"] for run in runs]
    before = {number: (place / "trials" / f"{number:04d}" / "metrics.jsonl").read_bytes() for number in range(3)}

    # A failed run is tried again, the finished ones are kept, and a second seed is added.
    (failed,) = (record for record in read_trials(str(place)) if record.number == 2)
    failed.state, failed.reason = "failed", "the machine burned"
    write_trial(str(place), failed)
    assert "fda, seed 0 is failed: the machine burned" in read_table(str(place)).missing
    second = _run(base, place, 2)
    assert (second.table.missing, [trial.state for trial in second.table.study.trials]) == ([], ["finished"] * 6)
    assert all((place / "trials" / f"{number:04d}" / "metrics.jsonl").read_bytes() == before[number] for number in (0, 1))
    assert read_run(str(place / "trials" / "0005")).part("sassl")["alpha"] == strengths[2]
    (contrast,) = {line.contrasts["knn", "top1"].basis for line in second.table.lines if line.against}
    assert contrast == "paired over test images and over seeds"
    assert {line.num_runs for line in second.table.lines} == {2}

    # What is written.
    page, tree = as_page(second.table), json.loads((place / "ablation.json").read_text())
    assert "<b>nothing" not in page
    assert page == (place / "ablation.html").read_text()
    assert "| style | 2 | none" in (place / "ablation.md").read_text()
    assert [line["runs"] for line in tree["lines"]] == [2] * 4
    assert tree["arms"]["fda"]["dose"]["at_alpha_0"] == 0

    # Nothing is left to do, and no Ray is needed for it; another protocol only evaluates.
    third = ray_sassl.ablation(TABLE, str(place), seeds=2, experiment=base, protocols=["linear"])
    assert {score.protocol for score in read_scores(str(place / "trials" / "0000"))[0]} == {"knn", "linear"}
    assert {protocol for line in third.table.lines for protocol, _ in line.values} == {"linear"}
    with pytest.raises(UsageError, match=r"the study to resume has another base\.optim\.base_lr"):
        _run(base, place, 2, overrides=["optim.base_lr=0.2"])
