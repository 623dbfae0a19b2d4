"""What the verbs `evaluate` and `detect` print while they work."""

from __future__ import annotations

import logging
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from ray_sassl.cli.tables import scores_table
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.evaluation.run import Failed, Finished, Started
from ray_sassl.orchestrate.batch.evaluate import DetectionData, DetectionEvent, DetectionReport
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.pages.starting import of_evaluations

_TESTED_EVERY = 500


def event_log(console: Console, settings: DetectConfig) -> Callable[[DetectionEvent], None]:
    """A function that prints each event. From now on, log messages of protocols are shown.

    Args:
        settings: Settings of detection.
    """
    logging.getLogger("ray_sassl.evaluation").setLevel(logging.INFO)
    reports = _DetectionReports(console, settings)

    def log(event: DetectionEvent) -> None:
        match event:
            case Started(protocol, encoder):
                console.print(f"{protocol}: {encoder} ...", style="dim")
            case Finished(protocol, evaluations, path):
                console.print(scores_table(protocol, {protocol: evaluations}))
                for sentence in of_evaluations(protocol, evaluations):
                    console.print(sentence, soft_wrap=True)
                console.print(f"Scores: {path}", soft_wrap=True)
            case Failed(protocol, UsageError() as error):
                console.print(Text.assemble((f"{protocol}:", "bold red"), f" {error}"), soft_wrap=True)
            case Failed():
                console.print_exception(max_frames=20)
            case DetectionData(train, test):
                for name, part in (("train", train), ("test", test)):
                    console.print(f"{name}: {len(part):,} images, {part.num_boxes:,} boxes of {len(part.class_names)} classes")
                    if part.num_dropped:
                        console.print(f"{name}: {part.num_dropped:,} boxes without an area were dropped", style="yellow")
            case DetectionReport(values):
                reports.print(values)

    return log


class _DetectionReports:
    """Prints losses now and then, the progress of a test, and each measurement."""

    def __init__(self, console: Console, settings: DetectConfig) -> None:
        self._console, self._steps = console, settings.steps
        self._every = max(20, settings.steps // 50 // 20 * 20)
        self._tested = 0

    def print(self, report: dict[str, float]) -> None:
        if "tested" in report:
            before, self._tested = self._tested, self._tested + int(report["tested"])
            if before // _TESTED_EVERY < self._tested // _TESTED_EVERY:
                self._console.print(f"test: {self._tested:,} images")
        elif "measured_step" in report:
            self._tested = 0
            scores = "  ".join(f"{name} {report[name]:.1%}" for name in ("AP", "AP50", "AP75"))
            self._console.print(f"step {report['measured_step']:,.0f}: {scores}")
        elif "step" in report and (report["step"] % self._every == 0 or report["step"] == self._steps):
            parts = "  ".join(f"{name} {value:.3f}" for name, value in report.items() if name != "step")
            self._console.print(f"step {report['step']:,.0f} of {self._steps:,}  {parts}")
