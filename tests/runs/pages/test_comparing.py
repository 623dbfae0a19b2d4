"""Runs side by side: groups of seeds, verdicts, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ray_sassl.evaluation import Predictions, Score
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.results import ProtocolScores
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.pages.comparing import as_json, as_markdown, compare, group_runs
from ray_sassl.runs.pages.comparison_page import comparison_page
from ray_sassl.runs.pages.contrast import described
from ray_sassl.runs.record import RunRecord

TRUTH = np.arange(2000) % 10


def _hits(share: float, seed: int, num: int = 2000) -> np.ndarray:
    """Easy and hard images, the same for all encoders, so that their hits agree mostly."""
    rng = np.random.default_rng(0)
    ease = rng.random(num)
    return ease + np.random.default_rng(seed).normal(0, 0.03, num) < share


def _scores(share: float, seed: int = 1, protocol: str = "knn", num: int = 2000, path: str = "test/", **settings) -> ProtocolScores:
    hits = _hits(share, seed, num)
    truth = TRUTH[:num]
    predictions = Predictions(np.arange(num), truth, np.where(hits, truth, (truth + 1) % 10))
    scores = {"top1": Score(float(hits.mean()), float(hits.mean()) - 0.02, float(hits.mean()) + 0.02, is_share=True)}
    return ProtocolScores(
        protocol, scores, predictions=predictions, step=100, settings={"name": protocol, **settings}, data={"test": {"path": path}}
    )


def _run(name: str, *scores: ProtocolScores, seed: int = 0, base_lr: float = 0.1) -> RunRecord:
    config = {"name": "moco", "seed": seed, "optim": {"base_lr": base_lr}, "train": {"epochs": 2, "global_batch": 8}}
    metrics = [{"step": step, "epoch": step / 50, "loss": 5 - step / 50} for step in range(1, 100)]
    summary = {"status": "finished", "step": 100}
    return RunRecord(f"runs/{name}", name, config, summary, {}, metrics, list(scores), {}, None)


def test_a_clear_difference_is_called_one():
    row = compare([_run("a", _scores(0.6)), _run("b", _scores(0.64, 2), base_lr=0.2)]).rows[0]
    contrast = row.contrasts[1]
    assert contrast is not None
    assert (contrast.verdict, contrast.basis) == ("higher", "paired over test images")
    assert contrast.low is not None
    assert 0 < contrast.low < contrast.value
    assert "higher: +" in described(contrast, is_share=True)


def test_a_run_against_itself_is_within_noise():
    run = _run("a", _scores(0.6))
    found = compare([run, run])
    assert [group.name for group in found.groups] == ["a", "a [2]"]
    contrast = found.rows[0].contrasts[1]
    assert contrast is not None
    assert (contrast.value, contrast.verdict) == (0.0, "noise")
    assert described(contrast, is_share=True).startswith("within noise: +0.00 points")


def test_a_small_difference_is_noise_and_its_interval_is_narrower_than_that_of_separate_scores():
    first, second = _scores(0.6), _scores(0.6, 2)
    paired = compare([_run("a", first), _run("b", second, base_lr=0.2)]).rows[0].contrasts[1]
    apart = compare([_run("a", replace(first, predictions=None)), _run("b", replace(second, predictions=None), base_lr=0.2)])
    contrast = apart.rows[0].contrasts[1]
    assert paired is not None
    assert contrast is not None
    assert paired.verdict == contrast.verdict == "noise"
    assert contrast.basis == "from the two intervals, not paired"
    assert paired.high - paired.low < contrast.high - contrast.low  # pyright: ignore[reportOptionalOperand, reportOperatorIssue]


def test_different_test_sets_are_refused():
    with pytest.raises(UsageError, match=r"different test sets \(2,000 and 1,000 images\).*ray-sassl evaluate runs/b knn"):
        compare([_run("a", _scores(0.6)), _run("b", _scores(0.6, num=1000), base_lr=0.2)])
    unkept = [replace(_scores(0.6, path=path), predictions=None) for path in ("one/", "other/")]
    with pytest.raises(UsageError, match="different test sets: one/ and other/"):
        compare([_run("a", unkept[0]), _run("b", unkept[1], base_lr=0.2)])


def test_equal_images_elsewhere_are_taken_and_noted():
    found = compare([_run("a", _scores(0.6)), _run("b", _scores(0.6, path="copy/test/"), base_lr=0.2)])
    assert any("are at test/ and at copy/test/" in note for note in found.notes)


def test_other_settings_of_a_protocol_are_refused():
    with pytest.raises(UsageError, match=r"different settings \(k 200 and 20\).*evaluate runs/b knn"):
        compare([_run("a", _scores(0.6, k=200)), _run("b", _scores(0.6, k=20), base_lr=0.2)])


def test_runs_that_differ_in_their_seed_only_are_one_group():
    runs = [_run("a0", seed=0), _run("b0", seed=0, base_lr=0.2), _run("a1", seed=1)]
    assert [[run.name for run in group.runs] for group in group_runs(runs)] == [["a0", "a1"], ["b0"]]
    assert [group.name for group in group_runs(runs)] == ["a0 (2 seeds)", "b0"]
    assert [group.name for group in group_runs([runs[0], runs[2]])] == ["a0", "a1"]


def test_seeds_that_differ_more_than_recipes_make_a_difference_noise():
    one = [_run(f"a{seed}", _scores(share, seed), seed=seed) for seed, share in enumerate((0.55, 0.60, 0.66))]
    other = [_run(f"b{seed}", _scores(share, seed + 3), seed=seed, base_lr=0.2) for seed, share in enumerate((0.57, 0.63, 0.67))]
    whole = compare([*one, *other]).rows[0]
    contrast = whole.contrasts[1]
    assert contrast is not None
    assert (contrast.verdict, contrast.basis) == ("noise", "paired over test images and over seeds")
    assert whole.num_runs == (3, 3)
    alone = compare([one[0], other[0]]).rows[0].contrasts[1]
    assert alone is not None
    assert alone.verdict == "higher"  # one seed each cannot show it, and the notes say so
    assert any("One run each" in note for note in compare([one[0], other[0]]).notes)


def test_few_shot_scores_are_paired_by_draw():
    def scores(shift: float) -> ProtocolScores:
        draws = [0.5 + 0.1 * np.sin(number) + shift + 0.001 * np.cos(7 * number) for number in range(50)]
        mean = float(np.mean(draws))
        return ProtocolScores(
            "few_shot", {"5_shot_top1": Score(mean, mean - 0.02, mean + 0.02)}, details={"5_shot": {"top1_by_draw": draws}}
        )

    contrast = compare([_run("a", scores(0)), _run("b", scores(0.005), base_lr=0.2)]).rows[0].contrasts[1]
    assert contrast is not None
    assert contrast.basis == "paired over draws"
    assert contrast.value == pytest.approx(0.005)


def test_what_was_not_evaluated_is_named_with_the_command_that_does_it():
    found = compare([_run("a", _scores(0.6, k=20), _scores(0.7, protocol="linear")), _run("b", _scores(0.6, k=20), base_lr=0.2)])
    assert [(entry.run, entry.protocol, entry.command) for entry in found.missing] == [
        ("b", "linear", "ray-sassl evaluate runs/b linear evaluate.test.path=test/")
    ]
    assert found.rows[1].values[1] is None
    command = compare([_run("a", _scores(0.6, k=20)), _run("b", base_lr=0.2)]).missing[0].command
    assert command == "ray-sassl evaluate runs/b knn knn.k=20 evaluate.test.path=test/"  # where the other was evaluated


def test_detection_is_made_by_its_own_verb():
    settings = {"name": "detect", **DetectConfig(steps=90, train_px=(64,)).model_dump(mode="json")}
    scores = ProtocolScores("detect", {"AP": Score(0.2, 0.1, 0.3)}, settings=settings, data={"path": "cells"})
    (entry,) = compare([_run("a", scores), _run("b", base_lr=0.2)]).missing
    assert entry.command == "ray-sassl detect runs/b cells steps=90 'train_px=[64]'"


def test_what_a_score_was_measured_on_is_noted():
    scores = replace(_scores(0.6), notes={"top1": "stylized by swift, which also stylized the training views: circular"})
    found = compare([_run("a", scores), _run("b", _scores(0.6), base_lr=0.2)])
    assert "knn of a: top1 stylized by swift, which also stylized the training views: circular." in found.notes


def test_other_train_images_are_noted():
    scores = [replace(_scores(0.6), data={"test": {"path": "test/"}, "train": {"path": path}}) for path in ("one/", "other/")]
    found = compare([_run("a", scores[0]), _run("b", scores[1], base_lr=0.2)])
    assert any("fitted on different train images (one/ and other/)" in note for note in found.notes)


def test_runs_that_were_never_evaluated_are_an_error_that_says_how_to():
    with pytest.raises(UsageError, match=r"none of the runs was evaluated yet.*--on PROTOCOLS"):
        compare([_run("a"), _run("b", base_lr=0.2)])
    with pytest.raises(UsageError, match="give at least two runs"):
        compare([_run("a")])


def test_markdown_json_and_page_say_the_same():
    found = compare([_run("a", _scores(0.6)), _run("b", _scores(0.64, 2), base_lr=0.2)])
    markdown, tree, page = as_markdown(found), json.loads(as_json(found)), comparison_page(found)
    contrast = tree["rows"][0]["against_first"]["b"]
    words = f"higher: {contrast['value'] * 100:+.2f} points [{contrast['low'] * 100:+.2f}, {contrast['high'] * 100:+.2f}]"
    assert words in markdown
    assert words in page
    assert "<td>optim.base_lr</td><td>0.1</td><td>0.2</td>" in page
    assert page.count("<svg") == 1
