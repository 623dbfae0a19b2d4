"""The verb `detect`."""

from __future__ import annotations

from typing import Any

from rich.console import Console

import ray_sassl
from ray_sassl.cli.data import resumable
from ray_sassl.cli.event_log import event_log
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.evaluation.detection import DetectConfig


def detect(console: Console, run: str, data: str, overrides: list[str], **options: Any) -> None:
    """Fine-tune the newest checkpoint's encoder as a detector, and print its average precision.

    Args:
        overrides: `path=value` changes to the settings.
        options: Further arguments of `ray_sassl.detect`.
    """
    settings = apply_overrides(DetectConfig(), overrides)
    with resumable(console, options.get("out") or run):
        result = ray_sassl.detect(run, data, settings, **options, watch=event_log(console, settings))
    if result.num_bad:
        console.print(f"{result.num_bad:,} images could not be decoded and were left out", style="yellow")
