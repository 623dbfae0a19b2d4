"""Processes that talk to each other, as the workers of a run do."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


def run_together(commands: Sequence[Sequence[str]], patience_s: float = 120.0) -> list[str]:
    """Run the commands at the same time until all have ended, each without an error; returns what each wrote to standard error."""
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        told = [process.communicate(timeout=patience_s)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(told)
    return told
