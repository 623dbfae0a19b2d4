"""The folder of evidence: cells by digest, runs that are stopped and continued, and the tables of what there is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence import Budget, Cell, digest_of, is_done, runs_of, show, work
from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.evaluation.protocols.knn import Config as Knn
from tests.orchestrate.conftest import write_held_shards, write_shards

BUDGET = Budget(seen=320, shards=1, batch=16, test_rows=60)
SMALL = ("views.size_px=16", "evaluate.size_px=16", "method.queue_size=32", "evaluate.train.max_bad_fraction=1", "data.block_rows=32")
JUDGES = (Knn(k=5),)
CELLS = {
    "plain": Cell("moco_cifar10_cpu", SMALL),
    "fda": Cell("moco_cifar10_cpu", (*SMALL, "stylize=fda"), ("plain", "colors, x")),
    "colors, x": Cell("moco_cifar10_cpu", (*SMALL, "stylize=color_statistics"), ("plain",), dose_of="fda"),
}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two data sets of noise, under the names of the real ones."""
    for folder in ("images", "elsewhere"):
        (tmp_path / folder).mkdir()
        write_shards(tmp_path / folder)
        write_held_shards(tmp_path / folder)
    monkeypatch.setattr(evidence, "DATA", dict.fromkeys(evidence.DATA, ("train-*.parquet", "held/train-0.parquet")))
    (tmp_path / "evidence").mkdir()
    return tmp_path / "images"


@pytest.mark.parametrize("table", evidence.TABLES)
def test_every_cell_is_an_experiment_of_its_own_and_is_the_same_on_any_machine(table: str, data: Path, tmp_path: Path):
    folder = tmp_path / "evidence"
    strengths = ["sassl.alpha=[0.6, 1]", "sassl.beta=[0.6, 1]"]  # noise has no colors of its own to reach the dose with
    (folder / "strengths.json").write_text(json.dumps({f"dose, {on}, colors, dose of strong": strengths for on in evidence.ON["dose"]}))
    here, there = (list(runs_of(table, folder, place, BUDGET, 1, JUDGES)) for place in (data, tmp_path / "elsewhere"))
    assert [run.place for _, _, run in here] == [run.place for _, _, run in there]
    assert len({run.place for _, _, run in here}) == len(here) == len(evidence.TABLES[table]) * len(evidence.ON[table])
    assert here[0][2].config.data.path != there[0][2].config.data.path
    known = set(evidence.TABLES[table])
    assert all(
        {*cell.against, cell.dose_of or cell.against[0] if cell.against else name} <= known for name, cell in evidence.TABLES[table].items()
    )
    longer = next(runs_of(table, folder, data, Budget(640, 1, 16, 60), 1, JUDGES))[2]
    assert longer.place != here[0][2].place


def test_a_seed_is_not_another_cell_and_another_judge_is(data: Path, tmp_path: Path):
    first, *_, last = (run for _, cell, run in runs_of("fa", tmp_path / "evidence", data, BUDGET, 2, JUDGES) if cell == "byol, nearest")
    assert (first.config.seed, last.config.seed) == (0, 1)
    assert Path(first.place).parent == Path(last.place).parent
    assert digest_of(first.config, JUDGES) == digest_of(last.config, JUDGES) != digest_of(first.config, (Knn(k=6),))


def test_cells_of_before_there_were_other_colors_go_on(data: Path, tmp_path: Path):
    run = next(runs_of("fa", tmp_path / "evidence", data, BUDGET, 1, JUDGES))[2]
    assert "colors" not in evidence.deciding(run.config, JUDGES)["views"]["left"]
    other = apply_overrides(run.config, ["views.left.colors=byol"])
    assert digest_of(other, JUDGES) != digest_of(run.config, JUDGES)


def test_runs_are_stopped_continued_and_shown_with_their_differences(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(evidence.TABLES, "fa", CELLS)
    folder = tmp_path / "evidence"
    runs = {cell: run for _, cell, run in runs_of("fa", folder, data, BUDGET, 1, JUDGES)}
    assert runs["colors, x"].config.sassl.alpha != runs["fda"].config.sassl.alpha
    judges = [{"name": "knn", **JUDGES[0].model_dump(mode="json")}]
    for number, run in enumerate(runs.values()):
        if number == 0:
            assert work(to_yaml(run.config), run.place, judges, time.time()).startswith("stopped at step")
            assert not is_done(run)
        assert work(to_yaml(run.config), run.place, judges, time.time() + 1000) == "done"
        assert is_done(run)
        assert not (Path(run.place) / "checkpoints").exists()
    (folder / "fa" / "cifar10" / "of-an-older-table-123456789012" / "seed-0").mkdir(parents=True)
    document = show("fa", folder)
    assert "# fa on cifar10: 2 epochs, batch 16" in document
    assert "| fda | 1 | plain |" in document
    assert document.count(" points ") >= 3
    again = {cell: run for _, cell, run in runs_of("fa", folder, data, BUDGET, 1, JUDGES)}
    assert all(is_done(run) for run in again.values())  # the strengths of equal dose are those of the first call
