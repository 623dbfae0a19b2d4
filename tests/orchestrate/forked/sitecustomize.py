"""Runs first in every Python process that has this folder on its path: one that `ray start` starts as a worker is forked instead."""

import os
import sys

_script = "".join(sys.orig_argv[1:2])  # `sys.argv` is not there yet
if "RAY_SASSL_FORKS" in os.environ and _script.endswith(("/workers/setup_worker.py", "/workers/default_worker.py")):
    import runpy
    from pathlib import Path

    own = Path(__file__).parents[3] / "ray_sassl" / "orchestrate" / "runtime" / "forking" / "setup_worker.py"
    runpy.run_path(str(own))["main"](sys.orig_argv[2:])
