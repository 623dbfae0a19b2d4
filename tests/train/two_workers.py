"""One of two training processes that talk over gloo; run as `python two_workers.py FOLDER RANK`, once for each rank.

FOLDER holds `NAME.yaml` configs; the run `NAME` goes to FOLDER/NAME-run, and what rank RANK saw of it to FOLDER/NAME-RANK.json. The run
called `stopped` is asked to stop after step 3, on rank 0 alone. On rank 1 days pass between two looks at the clock. At the end the
checkpoints of `seldom`, of which the first is damaged, are read for both.
"""

import hashlib
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

from ray_sassl.config.files import read_config
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from ray_sassl.train import saving
from ray_sassl.train.checkpoint import read_checkpoint_once
from ray_sassl.train.checkpoint_folder import list_checkpoints
from ray_sassl.train.context import LocalContext


def _load_conftest():
    spec = importlib.util.spec_from_file_location("train_conftest", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_conftest"] = module
    spec.loader.exec_module(module)
    return module


def _started(folder: Path, rank: int) -> dict[str, str]:
    """A digest of what is read of a whole checkpoint, and the error of a damaged one; rank 1 reads no file."""
    damaged, whole = (path for _, path in list_checkpoints(f"{folder}/seldom-run"))
    if rank == 1:
        storage.read_bytes = None
    checkpoint = read_checkpoint_once(whole, LocalContext(rank, 2))
    weights = {name: tensor.tolist() for name, tensor in sorted(checkpoint.backbone.items())}
    content = [checkpoint.step, checkpoint.state, weights, checkpoint.config_yaml]
    found = {"digest": hashlib.sha256(repr([*content, checkpoint.seen.encode()]).encode()).hexdigest()}
    if rank == 0:
        Path(damaged, "model.safetensors").write_bytes(b"damaged")
    try:
        read_checkpoint_once(damaged, LocalContext(rank, 2))
    except UsageError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2)
    if rank == 1:
        saving.time = SimpleNamespace(monotonic=itertools.count(0, 10**6).__next__)
    run_here = _load_conftest().run_here
    for path in sorted(folder.glob("*.yaml")):
        context = LocalContext(rank, 2, stop_at_step=3 if path.stem == "stopped" and rank == 0 else None)
        try:
            run = run_here(read_config(str(path)), folder / f"{path.stem}-run", context)
            result = {"status": run.outcome.status, "step": run.outcome.step, "metrics": run.metrics, "taken": run.taken}
        except UsageError as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        (folder / f"{path.stem}-{rank}.json").write_text(json.dumps(result))
    (folder / f"start-{rank}.json").write_text(json.dumps(_started(folder, rank)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
