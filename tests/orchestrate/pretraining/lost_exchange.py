"""Reads the parts of a window through an exchange whose node is lost after the first part:
`lost_exchange.py SHARDS FOLDER ADDRESS NODE_ID`."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.pretraining.exchange import Exchange, part_reader
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.runs.directory import prepare_run_dir
from ray_sassl.runs.process import view_source
from tests.orchestrate.conftest import small_config
from tests.orchestrate.pretraining.test_stream import SmallTasks


def main(shards: str, folder: str, address: str, node_id: str) -> None:
    config = apply_overrides(small_config(shards), ["data.shuffle_window=null", "data.shuffle_gb=0.00015", "data.block_rows=10"])
    prepare_run_dir(config, f"{folder}/run", resume=False)
    plain = view_source(config, f"{folder}/run")
    source = SmallTasks(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    window = source.plan.windows(0)[0]
    blocks = source.plan.blocks(window)
    with ray_session(address):
        there = NodeAffinitySchedulingStrategy(node_id, soft=True)
        exchange = cast(Any, Exchange).options(scheduling_strategy=there).remote(source, {"num_cpus": 1}, epochs=2)
        for part, numbers in enumerate(source.plan.parts(window)):
            read = part_reader(exchange, source, window, numbers)
            assert read is not None
            ids = np.concatenate([blocks[number].sample_id for number in numbers])
            assert sorted(read().sample_id) == sorted(ids), part
            if part == 0:
                Path(folder, "first part").touch()
                while not Path(folder, "lost").exists():
                    time.sleep(0.1)
    Path(folder, "all parts").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
