"""Run and study directories in which every text that a stranger may choose is the same word."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from ray_sassl.study.record import TrialRecord, open_study, write_trial
from tests.study.test_record import make_study, make_trial


def png(width_px: int = 40, height_px: int = 40) -> bytes:
    """A picture."""
    out = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def retell(run_dir: Path, word: str) -> None:
    """Put the word everywhere in a run directory where a text can stand, and keep it a run."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    in_yaml = word.encode(errors="ignore").decode()  # which has no half characters
    texts = ("method", "data", "backbone", "stylize", "sassl")
    tree = {name: {in_yaml: in_yaml, "name": in_yaml, "path": in_yaml, "views": in_yaml, "alpha": [in_yaml]} for name in texts}
    tree["method"]["fa"] = {"augmentation": {"name": in_yaml}, "architecture": in_yaml}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config | tree | {"name": in_yaml, in_yaml: {in_yaml: in_yaml}}))
    (run_dir / "environment.json").write_text(
        json.dumps({"commit": word, "gpus": [word], "packages": {"torch": word, "ray": word}, "command": [word, word]})
    )
    (run_dir / "summary.json").write_text(json.dumps({"status": word, "step": 7, "reason": word, "metrics": {word: 1.0}}))
    lines = [{"step": step, "epoch": step / 4, "loss": 4.0 - step, word: 0.1 * step} for step in range(1, 8)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run_dir / "quarantine.jsonl").write_text(json.dumps({"path": word, "row": 1, "sample_id": 1, "reason": f"{word}: {word}"}) + "\n")
    (run_dir / "views.png").write_bytes(png())
    folder = run_dir / "evaluation" / "step-00000007"
    folder.mkdir(parents=True, exist_ok=True)
    file_name = word.replace("/", "").replace("\0", "")[:40].encode(errors="replace").decode()
    (folder / f"{file_name}.png").write_bytes(png())
    for protocol in ("knn", file_name):
        (folder / f"{protocol}.json").write_text(json.dumps(_scores(word, file_name)))


def _scores(word: str, file_name: str) -> dict[str, Any]:
    return {
        "step": 7,
        "protocol": {"name": word, word: word},
        "data": {"train": {"path": word}, "test": {"path": word}},
        "scores": {
            word: {
                word: {"value": 0.5, "low": 0.4, "high": 0.6, "is_share": True, "chance": 0.1},
                "top1": {"value": 0.5, "is_share": True},
            },
            "raw pixels": {word: {"value": 0.1, "low": None, "high": None, "is_share": True}},
        },
        "details": {word: {word: word}},
        "files": {word: f"{file_name}.png", "elsewhere": f"../../{word}.png"},
    }


def make_hostile_study(folder: Path, word: str, num_trials: int) -> str:
    """A study of so many finished trials and a failed one, with the word in its names, reasons and choices."""
    study = make_study(objectives=("knn_top1", word.encode(errors="ignore").decode().replace(":", "")))
    in_yaml = word.encode(errors="ignore").decode()
    study = study.model_copy(update={"name": in_yaml, "base": study.base.model_copy(update={"name": in_yaml})})
    open_study(study, str(folder), resume=False)
    for number in range(num_trials):
        trial = make_trial(number, [0.1, 0.2 + 0.01 * number])
        curve = [dataclasses.replace(part, metrics=part.metrics | {word.replace(":", ""): 0.5 + 0.01 * number}) for part in trial.curve]
        write_trial(str(folder), dataclasses.replace(trial, curve=curve, reason=word))
        (folder / "trials" / f"{number:04d}" / "views.png").write_bytes(png(400, 320))
    write_trial(str(folder), TrialRecord(num_trials, {"sassl.prob": 0.5, word: word}, "failed", reason=word, attempts=2))
    return str(folder)


def edit_trial(folder: Path, number: int, /, **changes: Any) -> None:
    """Change fields of a trial's record as nobody of ours would."""
    path = folder / "trials" / f"{number:04d}" / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
