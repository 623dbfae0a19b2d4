"""A stream on a running cluster that is consumed more slowly than it is made: `slow_consumer.py SHARDS FOLDER ADDRESS`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data.seen import SeenIds
from ray_sassl.orchestrate.pretraining.control import start_control
from ray_sassl.orchestrate.pretraining.stream import make_stream, stream_spec
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.orchestrate.conftest import small_config


def main(shards: str, folder: str, address: str) -> None:
    sizes = ["views.size_px=96", "evaluate.train=null", "evaluate.test=null"]
    config = apply_overrides(small_config(shards, epochs=100), [*sizes, "stream.num_cpus=0.5", "stream.node_group=decode"])
    run_dir = str(Path(folder) / "run")
    index = prepare_run_dir(config, run_dir, resume=False)
    with ray_session(address):
        control = start_control(index.num_rows, 0.05, str(Path(folder) / "quarantine.jsonl"))
        stream = make_stream(stream_spec(config, view_source(config, run_dir)), SeenIds(index.num_rows), control)
        for number, _ in enumerate(stream.iter_batches(batch_size=30, prefetch_batches=0)):
            if number == 200:
                break
            time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
