"""What grows with the rows and the epochs of a run: its plan, a resume, the record of what was seen, and how well its batches are mixed.

    python -m benchmarks.scale [--sizes 1281167x1000 14000000x100 100000000x10] [--out FILE]

Indexes are made up: rows in class order (1,000 classes), in Parquet row groups of 100 or 256 rows or in tars, without any files. Every
figure comes from a process of its own. *Plan* is all that happens before the first block: the source of the stream and its first tasks,
made and pickled as Ray gets them; *resume* is the same in the middle of the second and of the last epoch, with 1,000 known bad rows.
*Record* is what was seen after all epochs but one, each of which lacks 1,000 rows of its own: its memory, and the time to encode, decode,
copy and merge it. *Mixing* is what batches of 256 hold of the 1,000 classes, over one epoch's first windows.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import time
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, in_own_process, write_results
from ray_sassl import pipeline
from ray_sassl.data import GROUP_SCHEMA, DataConfig
from ray_sassl.data.index import FILE_SCHEMA, Index
from ray_sassl.data.plan import default_window_bytes, plan_of
from ray_sassl.data.seen import SeenIds

SIZES = ("1281167x1000", "14000000x100", "100000000x10")
LAYOUTS = {"parquet, groups of 100": ("parquet", 100), "parquet, groups of 256": ("parquet", 256), "tar": ("webdataset", 256)}
ROW_BYTES = 110_000
BATCH = 256
_CLASSES = 1000
_BAD_ROWS = 1000
_WINDOWS = 20


@dataclass(frozen=True)
class Case:
    """One figure.

    Attributes:
        what: `plan`, `resume`, `record` or `mixing`.
        rows, epochs: Of the run.
        layout: A key of `LAYOUTS`.
        at: The epoch in whose middle the run resumes.
    """

    what: str
    rows: int
    epochs: int
    layout: str
    at: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="ROWSxEPOCHS")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**json.loads(args.case)))))
        return
    found = [(case, in_own_process("scale", case)) for size in args.sizes for case in cases(*map(int, size.split("x")))]
    show(found)
    details = {"cases": [asdict(case) | figures for case, figures in found]}
    print(f"written to {write_results('scale', goals(found), details, args.out)}")


def cases(rows: int, epochs: int) -> list[Case]:
    """All that is measured of one size."""
    found = []
    for layout in LAYOUTS:
        found += [Case("plan", rows, epochs, layout), *(Case("resume", rows, epochs, layout, at) for at in (1, epochs - 1))]
        found.append(Case("mixing", rows, epochs, layout))
    return [*found, Case("record", rows, epochs, next(iter(LAYOUTS)))]


def measure(case: Case) -> dict[str, float]:
    """The figures of the case, measured in this process."""
    if case.what == "record":
        return of_record(case.rows, case.epochs)
    if case.what == "mixing":
        return mixing(made_up_index(case.rows, case.layout))
    return of_plan(case)


def made_up_index(rows: int, layout: str) -> Index:
    """An index of so many rows, in shards of about 100,000."""
    format_, group_rows = LAYOUTS[layout]
    starts = np.arange(0, rows, group_rows)
    num_rows = np.minimum(group_rows, rows - starts)
    file = (starts // 100_000).astype(np.int32)
    place = (starts - starts[np.searchsorted(file, file)]) * ROW_BYTES if format_ == "webdataset" else np.arange(len(starts))
    stop = place + num_rows * ROW_BYTES if format_ == "webdataset" else place + 1
    groups = pa.table([file, place, stop, num_rows], schema=GROUP_SCHEMA)
    names = [f"{number:05d}" for number in range(int(file[-1]) + 1)]
    sizes = np.bincount(file, weights=num_rows * ROW_BYTES).astype(np.int64)
    files = pa.table([names, sizes, np.ones(len(names), np.int64)], schema=FILE_SCHEMA)
    return Index(DataConfig(path="/nowhere"), cast(Any, format_), "/nowhere/", files, groups, None)


def of_plan(case: Case) -> dict[str, float]:
    """CPU-seconds, peak memory, bytes and tasks before the first block, on top of the loaded index."""
    from ray import cloudpickle

    from ray_sassl.orchestrate.pretraining.feeding import MAX_WAITING, PlanDatasource
    from ray_sassl.views.recipes import moco_v2

    index = made_up_index(case.rows, case.layout)
    pipeline._load_index = lambda path, mtime_ns: index  # its samples are not made up, so it cannot be saved
    source = pipeline.ViewSource("/nowhere/index.arrow", index.config, moco_v2(224), seed=0)
    seen = seen_until(case.rows, case.at) if case.what == "resume" else SeenIds(case.rows)
    source.index.group_first  # noqa: B018 - what every process holds anyway
    memory = peak_bytes(reset=True)
    began = time.process_time()
    plan = PlanDatasource(source, case.epochs, seen)
    tasks = [*plan.get_read_tasks(1), *islice(plan.further_tasks(), MAX_WAITING)]
    sent = len(cloudpickle.dumps(plan)) + len(pickle.dumps(seen)) + sum(len(cloudpickle.dumps(task)) for task in tasks)
    return {
        "cpu_s": time.process_time() - began,
        "memory_mb": (peak_bytes() - memory) / 1e6,
        "bytes_mb": sent / 1e6,
        "tasks": len(tasks),
    }


def seen_until(rows: int, at: int) -> SeenIds:
    """Every epoch before but for the bad rows, and half of this one here and there, so that every window has rests of blocks."""
    bad = bad_rows(rows)
    seen = record_of(rows, [bad] * at)
    half = np.random.default_rng(1).permutation(rows // BATCH)[: rows // BATCH // 2]
    for batches in np.array_split(half, 20):
        ids = (batches[:, None] * BATCH + np.arange(BATCH)).ravel()
        seen.add(np.full(len(ids), at), ids)
    seen.add_to_touched(bad)
    return seen


def bad_rows(rows: int) -> np.ndarray:
    """The rows that are known to be bad, ascending."""
    return np.unique(np.random.default_rng(0).integers(0, rows, _BAD_ROWS))


def record_of(rows: int, missing: list[np.ndarray]) -> SeenIds:
    """The record in which each epoch from 0 on lacks these rows, ascending."""
    seen = SeenIds(rows)
    for epoch, ids in enumerate(missing):
        seen._put_missing(epoch, ids.astype(seen._dtype))
    return seen


def of_record(rows: int, epochs: int) -> dict[str, float]:
    """The memory of the record, and the CPU-seconds of what is done with it; every epoch lacks rows of its own, which is the worst case."""
    draws = np.random.default_rng(0)
    seen = record_of(rows, [np.unique(draws.integers(0, rows, _BAD_ROWS)) for _ in range(epochs - 1)])
    half = draws.permutation(rows)[: rows // 2]
    seen.add(np.full(len(half), epochs - 1), half)
    del half
    memory = peak_bytes(reset=True)
    began = time.process_time()
    content = seen.encode()
    other = SeenIds.decode(content)
    seen.merge([other])
    seen.copy().add_to_touched(bad_rows(rows))
    figures = {"cpu_s": time.process_time() - began, "memory_mb": seen.num_bytes() / 1e6, "bytes_mb": len(content) / 1e6}
    return figures | {"peak_over_it_mb": (peak_bytes() - memory) / 1e6}


def mixing(index: Index) -> dict[str, float]:
    """Classes in a batch and the share of pairs of the same class, in the first windows of an epoch, with the bytes that windows read over
    those of the rows that they deal; rows lie in class order. The window is that of a machine of 64 GB."""
    data = index.config.model_copy(update={"shuffle_gb": min(default_window_bytes(index, BATCH, bounded=False), 16e9) / 1e9})
    plan = plan_of(index, data, seed=0)
    counts, pairs, read, dealt = [], [], 0, 0
    for window in islice(plan.each_window(0), _WINDOWS):
        read += int(plan.piece_runs(window.pieces)[1].sum())
        for block in plan.blocks(window):
            dealt += len(block.sample_id)
            if len(block.sample_id) == BATCH:
                number = np.bincount(block.sample_id * _CLASSES // index.num_rows, minlength=_CLASSES)
                counts.append(int((number > 0).sum()))
                pairs.append(float((number * (number - 1)).sum() / (BATCH * (BATCH - 1))))
    figures = {"classes": float(np.mean(counts)), "fewest_classes": min(counts), "same_class_pairs": float(np.mean(pairs))}
    return figures | {"read_ratio": read / dealt, "window_mb": plan.mean_window_bytes / 1e6, "piece_rows": plan.piece_rows}


def peak_bytes(reset: bool = False) -> int:
    """The largest memory of this process so far; `reset` starts counting anew, from what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(found: list[tuple[Case, dict[str, float]]]) -> None:
    """One table for each thing that was measured."""
    for what in ("plan", "resume", "record", "mixing"):
        rows = [(case, figures) for case, figures in found if case.what == what]
        if not rows:
            continue
        table = Table("rows x epochs", "layout", "resumed in", *rows[0][1], title=what)
        for case, figures in rows:
            values = [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in figures.values()]
            table.add_row(f"{case.rows:,} x {case.epochs:,}", case.layout, str(case.at) if what == "resume" else "", *values)
        Console(width=120).print(table)


def worst_of_mixing(found: list[tuple[Case, dict[str, float]]], name: str, sign: int = 1) -> float:
    """The largest value, or with `sign=-1` the negative of the smallest."""
    return max((sign * figures[name] for case, figures in found if case.what == "mixing"), default=0.0)


def goals(found: list[tuple[Case, dict[str, float]]]) -> list[Goal]:
    """What was aimed at, at the sizes that were measured."""

    def worst(what: str, name: str, most_rows: int = 10**12) -> float:
        return max((figures[name] for case, figures in found if case.what == what and case.rows <= most_rows), default=0.0)

    reached = [
        Goal(
            "CPU-s before the first block, up to 14 M rows",
            max(worst(what, "cpu_s", 14_000_000) for what in ("plan", "resume")),
            "at most",
            2,
        ),
        Goal("MB of the record, up to 14 M rows", worst("record", "memory_mb", 14_000_000), "at most", 16),
        Goal("CPU-s to encode, decode, merge and resume from the record", worst("record", "cpu_s", 14_000_000), "at most", 2),
    ]
    reached += [
        Goal("fewest classes of 1,000 in a batch of 256", -worst_of_mixing(found, "fewest_classes", -1), "at least", 150),
        Goal("pairs of the same class", worst_of_mixing(found, "same_class_pairs"), "at most", 0.005),
        Goal("bytes read over those of the rows", worst_of_mixing(found, "read_ratio"), "at most", 1.15),
    ]
    by_case: dict[tuple[Any, ...], dict[int, float]] = {}
    for case, figures in found:
        if case.what == "resume":
            by_case.setdefault((case.rows, case.epochs, case.layout), {})[case.at] = figures["bytes_mb"]
    ratios = [sizes[max(sizes)] / sizes[min(sizes)] for sizes in by_case.values()]
    return [*reached, Goal("bytes sent where the last epoch is resumed over those of the second", max(ratios, default=1.0), "at most", 1.1)]


if __name__ == "__main__":
    main()
