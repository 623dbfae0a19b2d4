"""Every benchmark, one after the other, then one table of all goals."""

from __future__ import annotations

import json
import subprocess
import sys

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import RESULTS, Goal

SCRIPTS = (
    "views",
    "stream",
    "local_loader",
    "train_step",
    "feature_augmentation",
    "pool",
    "start",
    "stylize",
    "swift_fidelity",
    "evaluation",
    "checkpoint",
    "agreement",
    "scale",
    "reading",
    "dealing",
    "exchange",
)


def main() -> None:
    failed = [
        name for name in SCRIPTS if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]], check=False).returncode
    ]
    table = Table("benchmark", "what", "measured", "goal", "", title="Goals")
    for name in SCRIPTS:
        if name in failed:
            table.add_row(name, "did not finish; see above", "", "", "")
            continue
        for entry in json.loads((RESULTS / f"{name}.json").read_text())["goals"]:
            goal = Goal(**entry)
            table.add_row(name, goal.what, f"{goal.measured:.3g}", f"{goal.bound} {goal.goal:g}", "met" if goal.is_met else "not met")
    Console().print(table)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
