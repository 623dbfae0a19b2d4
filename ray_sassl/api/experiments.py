"""The named experiments from Python: `list_experiments`. Neither torch nor Ray is imported."""

from __future__ import annotations

from ray_sassl.experiments import summaries


def list_experiments() -> dict[str, str]:
    """The named experiments with one line about each, starting with the demo."""
    return summaries()
