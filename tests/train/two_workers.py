"""One of two training processes that talk over gloo; run as `python two_workers.py FOLDER RANK`, once for each rank.

FOLDER holds `NAME.yaml` configs; the run `NAME` goes to FOLDER/NAME-run, and what rank RANK saw of it to FOLDER/NAME-RANK.json. The run
called `stopped` is asked to stop after step 3, on rank 0 alone.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ray_sassl.config.files import read_config
from ray_sassl.process.errors import UsageError
from ray_sassl.train.context import LocalContext


def _load_conftest():
    spec = importlib.util.spec_from_file_location("train_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_conftest"] = module
    spec.loader.exec_module(module)
    return module


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    run_here = _load_conftest().run_here
    for path in sorted(folder.glob("*.yaml")):
        context = LocalContext(rank, 2, stop_at_step=3 if path.stem == "stopped" and rank == 0 else None)
        try:
            run = run_here(read_config(str(path)), folder / f"{path.stem}-run", context)
            result = {"status": run.outcome.status, "step": run.outcome.step, "metrics": run.metrics, "taken": run.taken}
        except UsageError as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"{path.stem}-{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
