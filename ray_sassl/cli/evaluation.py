"""The verb `evaluate`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

import ray_sassl
from ray_sassl.cli.data import resumable
from ray_sassl.cli.event_log import event_log
from ray_sassl.cli.protocol_words import ALL, DETECT, parse_protocols, split_detection, with_all_named
from ray_sassl.cli.tables import scores_table
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.evaluation.detection import DetectConfig
from ray_sassl.experiments import data_root
from ray_sassl.process.errors import UsageError


def evaluate(console: Console, run: str, words: list[str], **options: Any) -> int:
    """Evaluate the newest checkpoint by each protocol and print tables. Returns the exit code: 1 if a protocol failed.

    Args:
        words: Names of protocols, or `all`, and `path=value` changes. A change is for the protocols that have such a field, or else for the
            run's config. With `all`, `detect.data` is a data set to detect on, and `detect.FIELD` changes the settings of detection.
        options: Further arguments of `ray_sassl.evaluate`.
    """
    from ray_sassl.orchestrate.batch.evaluate import voc_folder
    from ray_sassl.orchestrate.runtime.progress import progress_bar

    wants_all = ALL in words
    words, boxes, settings = split_detection(words)
    if wants_all:
        boxes = boxes or voc_folder()
    no_boxes = f"there is no VOCdevkit in {data_root()}"
    if settings and boxes is None:
        raise UsageError(f"{DETECT}.{settings[0]} has no effect: {no_boxes}, and detect.data=FOLDER is not given")
    protocols, changes = parse_protocols(with_all_named(words))
    detection = apply_overrides(DetectConfig(), settings)
    with resumable(console, options.get("out") or run):
        result = ray_sassl.evaluate(
            run,
            protocols,
            overrides=changes,
            skip_absent=wants_all,
            detect_on=boxes,
            detection=detection,
            progress=progress_bar,
            watch=event_log(console, detection),
            **options,
        )
    if wants_all:
        console.print(scores_table("all protocols", result.evaluations))
        if boxes is None:
            result.skipped[DETECT] = f"{no_boxes}; detect.data=FOLDER names another data set in VOC's form"
    for name, reason in result.skipped.items():
        console.print(Text.assemble((f"{name} was left out:", "dim"), f" {reason}"), soft_wrap=True)
    for name, reason in result.failures.items():
        console.print(Text.assemble((f"{name} failed:", "bold red"), f" {reason}"), soft_wrap=True)
    if result.num_bad:
        console.print(f"{result.num_bad:,} images could not be decoded and were left out", style="yellow")
    return 1 if result.failures else 0
