"""Scores as files: what is written is read back, and so are files from before a score said what it is."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ray_sassl.evaluation import Evaluation, Predictions, Score
from ray_sassl.evaluation.results import read_evaluations, read_scores, results_folder, shown, write_scores
from ray_sassl.files.own import marked


def _png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def _write(run_dir: Path, step: int, evaluations: dict[str, Evaluation]) -> str:
    checkpoint = f"{run_dir}/checkpoints/step-{step}"
    folder = results_folder(checkpoint, step)
    return write_scores(folder, "knn", {"k": 5}, evaluations, checkpoint=checkpoint, step=step, data={"test": {"path": "test/"}}, num_bad=1)


def test_what_is_written_is_read_back(tmp_path: Path):
    scores = {"top1": Score(0.5, 0.4, 0.6).as_share(0.1), "hard_to_name": Score(0.25).as_share(), "spread": Score(3.0, 2.0, 4.0)}
    predictions = Predictions(np.array([2, 0]), np.array([1, 1]), np.array([1, 0]))
    own = Evaluation(scores, {"map": _png()}, {"k": 5}, predictions, {"top1": "circular"})
    path = _write(tmp_path, 7, {"step 7": own, "raw pixels": Evaluation({"top1": Score(0.2).as_share(0.1)})})
    _write(tmp_path, 3, {"step 3": Evaluation({"top1": Score(0.0)})})
    (found,), left_out = read_scores(str(tmp_path))
    assert left_out == []
    assert (found.path, found.protocol, found.step, found.settings) == (path, "knn", 7, {"name": "knn", "k": 5})
    assert found.scores == scores
    assert found.baselines == {"raw pixels": {"top1": Score(0.2, is_share=True, chance=0.1)}}
    assert found.details == {"k": 5}
    assert found.notes == {"top1": "circular"}
    again = read_evaluations(str(Path(path).parent), "knn")
    assert again is not None
    assert again["step 7"].notes == {"top1": "circular"}
    assert found.figures == {"map": marked(_png())}
    assert found.predictions is not None
    assert found.predictions.sample_id.tolist() == [0, 2]
    assert found.predictions.correct.tolist() == [False, True]


def test_scores_of_old_files_are_recognized_by_their_names(tmp_path: Path):
    folder = tmp_path / "evaluation" / "step-00000007"
    folder.mkdir(parents=True)
    names = ("top1", "train_top1", "mean_per_class", "AP50", "mine_top1", "uniformity")
    record = {
        "checkpoint": "runs/first/checkpoints/step-00000007",
        "step": 7,
        "protocol": {"name": "knn", "k": 5},
        "data": {"test": {"path": "test/"}},
        "chance": 0.1,
        "scores": {"step 7": {name: {"value": 0.5, "low": 0.4, "high": 0.6} for name in names}, "raw pixels": {"top1": {"value": 0.25}}},
        "details": {"step 7": {"mine": {"chance": 0.125}}},
        "files": {},
    }
    (folder / "knn.json").write_text(json.dumps(record))
    (tmp_path / "evaluate-flat.json").write_text('{"scores": {"top1": 0.5, "is_good": true}}')
    (flat, found), _ = read_scores(str(tmp_path))
    assert flat.scores == {"top1": Score(0.5, is_share=True)}
    assert [name for name, score in found.scores.items() if score.is_share] == list(names[:-1])
    assert {name: score.chance for name, score in found.scores.items() if score.chance} == {"top1": 0.1, "mine_top1": 0.125}
    assert found.scores["top1"] == Score(0.5, 0.4, 0.6, is_share=True, chance=0.1)
    assert list(found.baselines) == ["raw pixels"]


def test_shares_are_shown_in_per_cent():
    assert shown(Score(0.5, 0.4, 0.6).as_share()) == ("50.00%", "40.00% to 60.00%")
    assert shown(Score(0.5)) == ("0.5", "")


def test_damaged_predictions_are_named(tmp_path: Path):
    evaluation = Evaluation({"top1": Score(0.5)}, predictions=Predictions(*(np.zeros(2, np.int64) for _ in range(3))))
    path = Path(_write(tmp_path, 7, {"step 7": evaluation}))
    for damage, word in ((None, "names a sample twice"), (b"PAR1", "cannot read predictions from")):
        if damage:
            path.with_suffix(".parquet").write_bytes(damage)
        (found,), (left_out,) = read_scores(str(tmp_path))
        assert (found.scores, found.predictions) == ({"top1": Score(0.5)}, None)
        assert word in left_out
        assert "knn.parquet" in left_out
