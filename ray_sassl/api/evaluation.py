"""Evaluations from Python: protocols and detection."""

from __future__ import annotations

from ray_sassl.orchestrate.batch.evaluate import detect, evaluate

__all__ = ["detect", "evaluate"]
