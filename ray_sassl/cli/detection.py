"""What the verb `detect` does and prints."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict

import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.markup import escape

from ray_sassl.cli.evaluation import FOLDER, scores_table
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.quarantine import BadRow
from ray_sassl.evaluation import Evaluation
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.detection.average_precision import check_installed
from ray_sassl.evaluation.detection.report import detections_table, evaluation_of
from ray_sassl.evaluation.detection.training import DetectionJob, DetectionResult, run_detection
from ray_sassl.evaluation.detection.voc import read_voc
from ray_sassl.evaluation.subject import untrained_backbone
from ray_sassl.files import storage
from ray_sassl.files.paths import absolute
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.process import load_backbone
from ray_sassl.train.checkpoint import Checkpoint
from ray_sassl.train.context import LocalContext

NAME = "detect"
_TESTED_EVERY = 500

_Run = Callable[[DetectionJob], DetectionResult]


def detect(
    console: Console,
    run: str,
    data: str,
    overrides: list[str],
    *,
    baselines: bool = False,
    out: str | None = None,
    workers: int | None = None,
    worker_cpus: float = 1.0,
    address: str | None = None,
) -> dict[str, Evaluation]:
    """Fine-tune the newest checkpoint's encoder as a detector and print its average precision; write JSON, detections and pictures.

    Returns what was found of each encoder.

    Args:
        data: A folder of PASCAL VOC's form.
        overrides: `path=value` changes to the settings.
        baselines: Whether to do the same with the untrained encoder.
        out: The folder for the results.
        workers: How many; 0: in this process. Not given: one a GPU of the cluster that is named or of this machine where it has several; else 0.
    """
    check_installed()
    settings = apply_overrides(DetectConfig(), overrides)
    checkpoint = find_checkpoint(run)
    config, backbone = load_backbone(checkpoint)
    out = out or storage.join(storage.parent(storage.parent(checkpoint.path)), FOLDER, f"step-{checkpoint.step:08d}")
    out = absolute(out)
    storage.check_can_write(out, is_folder=True)
    data = absolute(data)
    train, test = read_voc(data, settings.train, settings.test)
    for name, part in (("train", train), ("test", test)):
        console.print(f"{name}: {len(part):,} images, {part.num_boxes:,} boxes of {len(part.class_names)} classes", highlight=False)
        if part.num_dropped:
            console.print(f"[yellow]{name}: {part.num_dropped:,} boxes without an area were dropped[/]", highlight=False)
    encoders = {f"step {checkpoint.step:,}": backbone} | ({"untrained encoder": untrained_backbone(config)} if baselines else {})
    evaluations: dict[str, Evaluation] = {}
    bad: list[BadRow] = []
    with ExitStack() as until_the_end:
        run_job = _place(console, settings, workers, worker_cpus, address, until_the_end)
        for number, (name, encoder) in enumerate(encoders.items()):
            console.print(f"{NAME}: {name} ...", style="dim", highlight=False)
            file = storage.join(out, f"{NAME}{'-untrained' if number else ''}-checkpoint.pt")
            job = DetectionJob(encoder, tuple(config.train.pixel_mean), tuple(config.train.pixel_std), train, test, settings, file)
            result = run_job(copy.deepcopy(job))
            evaluations[name] = evaluation_of(job, result)
            bad += [row for rows in result.bad.values() for row in rows if row not in bad]
            if number == 0:
                sink = io.BytesIO()
                pq.write_table(detections_table(result), sink)
                storage.write_bytes(storage.join(out, f"{NAME}.parquet"), sink.getvalue())
            storage.remove(file)
    console.print(scores_table(NAME, {NAME: evaluations}, None))
    console.print(f"Scores: {_write(out, settings, evaluations, checkpoint, data, len(bad))}", soft_wrap=True, highlight=False)
    if bad:
        console.print(
            f"[yellow]{len(bad):,} images could not be decoded and were left out[/], such as {escape(str(bad[0]))}", soft_wrap=True
        )
    return evaluations


def _place(
    console: Console, settings: DetectConfig, workers: int | None, worker_cpus: float, address: str | None, until_the_end: ExitStack
) -> _Run:
    """Where jobs are done."""
    watch = _Watch(console, settings)
    if workers is None and not address and not os.environ.get("RAY_ADDRESS"):
        workers = torch.cuda.device_count() if torch.cuda.device_count() > 1 else 0
    if workers == 0:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        class Context(LocalContext):
            def report(self, metrics: dict[str, float]) -> None:
                watch(metrics)

        return lambda job: run_detection(job, Context(device=device))
    from ray_sassl.orchestrate.batch.detect import detect_on_ray
    from ray_sassl.orchestrate.pretraining.train_job import Workers
    from ray_sassl.orchestrate.runtime.autoscaler import offered, present
    from ray_sassl.orchestrate.runtime.session import ray_session

    until_the_end.enter_context(ray_session(address))
    count = workers or max(1, int(present("GPU")))
    group = Workers(count, worker_cpus, use_gpu=offered("GPU") >= count)
    return lambda job: detect_on_ray(job, group, watch=watch)


class _Watch:
    """Prints the losses now and then, how far a test is, and each measurement."""

    def __init__(self, console: Console, settings: DetectConfig) -> None:
        self._console, self._steps = console, settings.steps
        self._every = max(20, settings.steps // 50 // 20 * 20)
        self._tested = 0

    def __call__(self, report: dict[str, float]) -> None:
        if "tested" in report:
            before, self._tested = self._tested, self._tested + int(report["tested"])
            if before // _TESTED_EVERY < self._tested // _TESTED_EVERY:
                self._console.print(f"test: {self._tested:,} images", highlight=False)
        elif "measured_step" in report:
            self._tested = 0
            figures = "  ".join(f"{name} {report[name]:.1%}" for name in ("AP", "AP50", "AP75"))
            self._console.print(f"step {report['measured_step']:,.0f}: {figures}", highlight=False)
        elif "step" in report and (report["step"] % self._every == 0 or report["step"] == self._steps):
            parts = "  ".join(f"{name} {value:.3f}" for name, value in report.items() if name != "step")
            self._console.print(f"step {report['step']:,.0f} of {self._steps:,}  {parts}", highlight=False)


def _write(out: str, settings: DetectConfig, evaluations: dict[str, Evaluation], checkpoint: Checkpoint, data: str, num_bad: int) -> str:
    """`detect.json` in the form of the protocols', and beside it the first encoder's pictures `detect-NAME.png`; returns the first."""
    files = {"detections": f"{NAME}.parquet"}
    for name, content in next(iter(evaluations.values())).figures.items():
        files[name] = f"{NAME}-{name}.png"
        storage.write_bytes(storage.join(out, files[name]), content)
    record = {
        "checkpoint": checkpoint.path,
        "step": checkpoint.step,
        "protocol": {"name": NAME, **settings.model_dump(mode="json")},
        "data": {"path": data},
        "bad_images": num_bad,
        "chance": None,
        "scores": {name: {key: asdict(score) for key, score in found.scores.items()} for name, found in evaluations.items()},
        "details": {name: found.details for name, found in evaluations.items()},
        "files": files,
    }
    path = storage.join(out, f"{NAME}.json")
    storage.write_text(path, json.dumps(record, indent=2))
    return path
