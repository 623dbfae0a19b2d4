"""Secrets that were sent with a job: a file beside its code, from which every process of the job takes its environment.

Ray keeps a job's command and environment in its record and shows them, so they do not stand there; docs/jobs.md says who can read the file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FILE = "job_secrets.json"


def put(package: Path, secrets: Mapping[str, str]) -> None:
    """Lay the variables beside a copy of the package that is sent with a job."""
    path = package / FILE
    path.touch(mode=0o600)
    path.write_text(json.dumps(dict(secrets)))


def take(package: Path) -> None:
    """Set the variables that were sent with this copy of the package, if any were, in this process."""
    try:
        text = (package / FILE).read_text()
    except (FileNotFoundError, NotADirectoryError):  # no job, or one without secrets; the package may be in an archive
        return
    os.environ.update(json.loads(text))
