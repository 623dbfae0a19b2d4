"""What the exchange of the rows of large windows costs, and how long tasks wait for it.

    python -m benchmarks.exchange [--rounds 3]

*Throughput*: all windows of local Parquet shards of images of 110 kB, part by part, through the exchange's tasks and Ray's object store,
and read by plain functions in one process; megabytes for a CPU-second, of all processes of this Ray. *Store*: the parts of windows of JPEGs
on moto's S3 server, which runs in another process and answers after 50 ms, each cropped as soon as it is there, by one process beside the
tasks that read; with each window read when its first part is asked for, and read ahead. *At work* is the share of the CPU-seconds of the
process that crops in the sum of these and of its waits for parts. *Sent before* are the requests of a window, with those for footers, that
were sent before its first part was asked for, over its row groups. The two take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import cpu_between, cpu_seconds, tree, write_results
from benchmarks.reading import photograph, store
from ray_sassl.data import DataConfig, Rows
from ray_sassl.data.plan import Plan, Window
from ray_sassl.data.reading import build_index, read_runs
from ray_sassl.files import storage
from ray_sassl.orchestrate.pretraining.exchange import Exchange, part_reader
from ray_sassl.orchestrate.runtime.session import ray_session
from ray_sassl.pipeline import ViewSource, crop_rows
from ray_sassl.views.recipes import ViewConfig, simclr

PART_ROWS, WINDOW_ROWS, GROUP_ROWS = 128, 512, 32
_ROWS = 8 * WINDOW_ROWS
_STORED_ROWS = 4 * WINDOW_ROWS
_SHARD_ROWS = 128


@dataclass(frozen=True)
class Parts(ViewSource):
    """A source whose windows are the work of several tasks, although they are small."""

    @property
    def plan(self) -> Plan:
        plan = super().plan
        plan.task_rows = PART_ROWS
        return plan


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {"throughput": [], "store, in turn": [], "store, ahead": []}
    with tempfile.TemporaryDirectory() as name, store(Path(name)) as options, ray_session("local"):
        local, stored = _local_source(Path(name)), _stored_source(Path(name), options)
        for _ in range(args.rounds):
            found["throughput"].append(throughput(local))
            for case in ("store, in turn", "store, ahead"):
                found[case].append(waits(stored, Path(name) / "log", is_ahead=case == "store, ahead"))
            print({case: runs[-1] for case, runs in found.items()}, flush=True)
    medians = {case: {what: statistics.median(run[what] for run in runs) for what in runs[0]} for case, runs in found.items()}
    table = Table("", "", "median")
    for case, values in medians.items():
        for what, value in values.items():
            table.add_row(case, what, f"{value:.3g}")
    Console().print(table)
    print(f"written to {write_results('exchange', [], {'medians': medians, 'runs': found}, args.out)}")


def throughput(source: Parts) -> dict[str, float]:
    """Megabytes for a CPU-second and a second, through the exchange and without it; the first window is not counted."""
    exchange = cast(Any, Exchange).remote(source, {"num_cpus": 1}, 1)
    first, *others = source.plan.windows(0)
    _take(exchange, source, first)
    began, cpu_began = time.perf_counter(), cpu_seconds(tree(os.getpid()))
    num_bytes = sum(_take(exchange, source, window) for window in others)
    passed, cpu_s = time.perf_counter() - began, cpu_between(cpu_began, cpu_seconds(tree(os.getpid())))
    ray.kill(exchange)
    plain_began = time.process_time()
    for window in others:
        read_runs(source.index, *source.plan.piece_runs(window.pieces))
    plain_s = time.process_time() - plain_began
    megabytes = num_bytes / 1e6
    return {"MB/CPU-s": megabytes / cpu_s, "MB/s": megabytes / passed, "MB/CPU-s of plain reading": megabytes / plain_s}


def _take(exchange: Any, source: Parts, window: Window) -> int:
    return sum(len(cast(bytes, image)) for rows in _parts(exchange, source, window) for image in rows.encoded)


def _parts(exchange: Any, source: Parts, window: Window) -> Iterator[Rows]:
    for blocks in source.plan.parts(window):
        read = part_reader(exchange, source, window, blocks)
        assert read is not None
        yield read()


def waits(source: Parts, log: Path, *, is_ahead: bool, epochs: int = 3) -> dict[str, float]:
    """The share of the time at work, the longest wait for a part, and the share of the requests sent before their window was asked for; the
    first epoch, in which processes start, is not counted."""
    exchange = cast(Any, Exchange).remote(source, {"num_cpus": 1}, 1, epochs if is_ahead else 0)
    idle_s, cpu_s, early, requests, groups = [0.0], 0.0, 0, 0, 0
    for window in (window for epoch in range(epochs) for window in source.plan.windows(epoch)):
        early += window.epoch and _num_gets(log) - requests
        groups += window.epoch and len(window.pieces)
        parts = _parts(exchange, source, window)
        for part in range(len(source.plan.parts(window))):
            began, cpu_began = time.monotonic(), time.process_time()
            rows = next(parts)
            waited_s = max(0.0, time.monotonic() - began - (time.process_time() - cpu_began))
            if part == 0:  # the whole window is there, and the next one not begun
                requests = _num_gets(log)
            crop_rows(rows, [(ViewConfig(), 224)] * 2, 0, 0, 10**8, print)
            if window.epoch:
                idle_s.append(waited_s)
                cpu_s += time.process_time() - cpu_began
    ray.kill(exchange)
    return {"at work": cpu_s / (cpu_s + sum(idle_s)), "longest wait, s": max(idle_s), "sent before": early / groups}


def _num_gets(log: Path) -> int:
    return log.read_text().split().count("GET")


def _local_source(folder: Path) -> Parts:
    draws = np.random.default_rng(0)
    (folder / "local").mkdir()
    for number in range(_ROWS // 1024):
        table = pa.table({"image": [draws.bytes(110_000) for _ in range(1024)], "label": range(1024)})
        pq.write_table(table, folder / f"local/{number}.parquet", row_group_size=GROUP_ROWS, use_dictionary=False)
    return _source(folder, "local", str(folder / "local"))


def _stored_source(folder: Path, options: str) -> Parts:
    image = photograph(500, 375)
    for number in range(_STORED_ROWS // _SHARD_ROWS):
        path = folder / "shard.parquet"
        table = pa.table({"image": [image] * _SHARD_ROWS, "label": range(_SHARD_ROWS)})
        pq.write_table(table, path, row_group_size=GROUP_ROWS, use_dictionary=False)
        storage.write_bytes(f"s3://bucket/stored/{number}.parquet{options}", path.read_bytes())
    return _source(folder, "stored", f"s3://bucket/stored{options}")


def _source(folder: Path, name: str, path: str) -> Parts:
    index = build_index(DataConfig(path=path))
    index.save(folder / f"{name}.arrow")
    window_gb = (WINDOW_ROWS + 1) * index.num_bytes / index.num_rows / 1e9
    data = index.config.model_copy(update={"shuffle_gb": window_gb, "block_rows": PART_ROWS // 2})
    plain = ViewSource(str(folder / f"{name}.arrow"), data, simclr(224), 0)
    return Parts(**{field.name: getattr(plain, field.name) for field in fields(plain)})


if __name__ == "__main__":
    main()
