"""What the index costs that says where images lie, and what reading them costs: memory, CPU-seconds and requests.

    python -m benchmarks.reading [--rows 1281167 14000000] [--out FILE]

Every figure comes from a process of its own, and memory is what it takes on top of the same work on a tiny data set or of the imports.
*Worker* and *driver* have made-up data sets in tars, folders and Parquet row groups of 100: a worker looks at the rows of 1,000 row groups,
and the driver puts the index together, without the scans of the shards (tasks of the cluster) and the listing. *Block* crops photographs,
and *group* reads a Parquet row group of 10,000 rows. *Window* reads the first window of Parquet files with row groups of 256, 100 and 32
images of 30 kB until its first block is there. *Store* reads and crops a window of 1,024 images from moto's S3 server, which runs in
another process and answers after 50 ms: in pieces of tars, in row groups, and as files; and four windows of a plan, in turn or each read
while the one before is used. *Listing* builds the index of a folder of so many images on a server that makes up pages of 1,000 objects.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Goal, in_own_process, write_results
from ray_sassl import pipeline
from ray_sassl.data import GROUP_SCHEMA, ROW_COLUMNS, DataConfig
from ray_sassl.data.index import FILE_SCHEMA, Index
from ray_sassl.data.plan import with_window
from ray_sassl.data.seen import SeenIds
from ray_sassl.process.stages import StageTimes
from ray_sassl.views.recipes import ViewConfig, simclr

LAYOUTS = {"tar": "webdataset", "folder": "folder", "parquet, groups of 100": "parquet"}
PHOTOGRAPHS = {
    "48 of 24 megapixels": (48, 6000, 4000),
    "12 of 100 megapixels": (12, 10_000, 10_000),
    "256 of 1 megapixel": (256, 1000, 1000),
}
WINDOW_GROUPS = (256, 100, 32)
STORES = ("tar", "parquet", "folder")
LATENCY_S = 0.05
_SHARD_ROWS, _WINDOW, _PIECE = 1024, 1024, 32
_STORED_ROWS = 128
"""Rows of a shard on the S3 server, which reads a whole shard for each request."""
_LOOKED_AT = 1000


@dataclass(frozen=True)
class Case:
    """One figure: `worker` or `driver` of `rows` in a `layout`, a `block` of `PHOTOGRAPHS`, a `group`, a `window` of row groups of
    `rows`, a `store` of a kind, or a `listing` of `rows` images."""

    what: str
    layout: str = ""
    rows: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[1_281_167, 14_000_000])
    parser.add_argument("--what", nargs="+", default=["worker", "driver", "block", "group", "window", "store", "listing"])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**json.loads(args.case)))))
        return
    cases = [Case(what, layout, rows) for what in ("worker", "driver") for rows in args.rows for layout in LAYOUTS]
    cases += [Case("block", layout) for layout in PHOTOGRAPHS] + [Case("group")]
    cases += [Case("window", rows=rows) for rows in WINDOW_GROUPS] + [Case("store", kind) for kind in STORES]
    cases.append(Case("listing", rows=min(args.rows)))
    found = []
    for case in cases:
        if case.what in args.what:
            found.append((case, in_own_process("reading", case)))
            print(case, found[-1][1], flush=True)
    show(found)
    print(f"written to {write_results('reading', goals(found), {'cases': [asdict(case) | values for case, values in found]}, args.out)}")


def measure(case: Case) -> dict[str, float]:
    """The figures of the case, measured in this process or in one that it starts."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        match case.what:
            case "worker":
                return of_worker(case, folder)
            case "driver":
                return of_driver(case, folder)
            case "block":
                return of_block(folder, *PHOTOGRAPHS[case.layout])
            case "group":
                return of_group(folder)
            case "window":
                return of_window(folder, case.rows)
            case "listing":
                return of_listing(folder, case.rows)
        return of_store(folder, case.layout)


def of_worker(case: Case, folder: Path) -> dict[str, float]:
    """Memory and CPU-seconds to open the index and look at row groups here and there."""
    made_up_index(case.layout, 1000).save(folder / "few")
    _in_child(lambda: made_up_index(case.layout, case.rows).save(folder / "many"))
    _look_at(folder / "few")
    before, began = peak_bytes(reset=True), time.process_time()
    _look_at(folder / "many")
    cpu_s = time.process_time() - began
    return {"memory_mb": (peak_bytes() - before) / 1e6, "cpu_s": cpu_s, "file_mb": (folder / "many").stat().st_size / 1e6}


def _look_at(path: Path) -> None:
    index = Index.load(path)
    for group in np.random.default_rng(0).permutation(index.num_groups)[:_LOOKED_AT].tolist():
        file, start, stop = index.group_place(group)
        if index.rows is not None:
            index.rows_of(group).to_pydict()
        index.file_paths(start, stop) if index.format == "folder" else index.file_path(file)


def of_driver(case: Case, folder: Path) -> dict[str, float]:
    """Memory and CPU-seconds to put the index together from scans and listings that are there, and to save it."""
    from ray_sassl.data import ShardScan
    from ray_sassl.data.reading import cached_index
    from ray_sassl.files import storage

    format_ = LAYOUTS[case.layout]
    rows_of_shard = _SHARD_ROWS if format_ == "webdataset" else 100_000
    num_files = case.rows if format_ == "folder" else -(-case.rows // rows_of_shard)
    ending = {"webdataset": "tar", "folder": "JPEG", "parquet": "parquet"}[format_]
    names = pa.array((f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.{ending}" for number in range(num_files)), pa.large_string())
    listing = storage.Walk(names, np.full(num_files, 10**9), np.ones(num_files, np.int64), {})
    group = 256 if format_ == "webdataset" else 100
    starts = np.arange(0, rows_of_shard, group)
    rows = _samples(format_, np.arange(rows_of_shard)) if format_ == "webdataset" else None
    shard = ShardScan(np.stack([starts, starts + 1, np.full(len(starts), group)], axis=1), rows)
    (folder / "data").mkdir()
    cast(Any, storage).walk = lambda _: listing
    before, began = peak_bytes(reset=True), time.process_time()
    index = cached_index(
        DataConfig(path=str(folder / "data")), folder / "index", each=lambda _, shards: repeat(cast(Any, shard), len(shards))
    )
    assert index.num_rows >= case.rows
    return {"memory_mb": (peak_bytes() - before) / 1e6, "cpu_s": time.process_time() - began}


def made_up_index(layout: str, rows: int) -> Index:
    """An index of so many rows, without files."""
    format_ = LAYOUTS[layout]
    group = 100 if format_ == "parquet" else 256
    starts = np.arange(0, rows, group)
    num_rows = np.minimum(group, rows - starts)
    parts = [np.arange(first, min(first + 2**18, rows)) for first in range(0, rows, 2**18)]
    samples = None if format_ == "parquet" else pa.concat_tables(_samples(format_, part) for part in parts)
    if format_ == "folder":
        groups = pa.table([starts.astype(np.int32), starts, starts + num_rows, num_rows], schema=GROUP_SCHEMA)
        listed = [pa.table([_names(part), np.full(len(part), 10**5), np.ones(len(part), np.int64)], schema=FILE_SCHEMA) for part in parts]
        return Index(DataConfig(path="/nowhere"), "folder", "/nowhere/", pa.concat_tables(listed), groups, samples)
    shard = (starts // _SHARD_ROWS).astype(np.int32)
    begin = starts % _SHARD_ROWS * 10**5
    groups = pa.table([shard, begin, begin + num_rows * 10**5, num_rows], schema=GROUP_SCHEMA)
    names = [f"{number:06d}" for number in range(int(shard[-1]) + 1)]
    files = pa.table([names, [2**40] * len(names), [1] * len(names)], schema=FILE_SCHEMA)
    return Index(DataConfig(path="/nowhere"), cast(Any, format_), "/nowhere/", files, groups, samples)


def _samples(format_: str, number: np.ndarray) -> pa.Table:
    place = number % _SHARD_ROWS * 10**5
    columns = {"key": _names(number), "offset": place, "size": np.full(len(number), 10**5), "label": number // 1300}
    return pa.table({name: columns[name] for name in ROW_COLUMNS[format_]})


def _names(number: np.ndarray) -> pa.Array:
    return pa.array([f"n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in number.tolist()])


def of_block(folder: Path, count: int, width: int, height: int) -> dict[str, float]:
    """Peak memory to crop two views of 224 px of photographs, on top of that of one small image."""
    from ray_sassl.data import Rows
    from ray_sassl.pipeline import crop_rows
    from ray_sassl.views.recipes import ViewConfig

    def crop(encoded: Sequence[bytes]) -> None:
        ids = np.arange(len(encoded))
        crop_rows(Rows(ids, list(encoded), ids, [""] * len(ids), [""] * len(ids), ids), [(ViewConfig(), 224)] * 2, 0, 0, 10**9, print)

    _in_child(lambda: (folder / "photograph").write_bytes(photograph(width, height)))
    large = (folder / "photograph").read_bytes()
    crop([photograph(100, 100)])
    before, began = peak_bytes(reset=True), time.process_time()
    crop([large] * count)
    cpu_s = time.process_time() - began
    crops_mb = count * 2 * 224**2 * 3 / 1e6
    return {"memory_mb": (peak_bytes() - before) / 1e6, "decoded_mb": width * height * 3 / 1e6, "crops_mb": crops_mb, "cpu_s": cpu_s}


def of_group(folder: Path) -> dict[str, float]:
    """Peak memory to read a Parquet row group of 10,000 images of 110 kB, over the bytes of the images."""
    from ray_sassl.data.reading import build_index, read_groups

    def write() -> None:
        draws = np.random.default_rng(0)
        table = pa.table({"image": [draws.bytes(110_000) for _ in range(10_000)], "label": range(10_000)})
        pq.write_table(table, folder / "a.parquet", row_group_size=10_000)

    _in_child(write)
    index = build_index(DataConfig(path=str(folder / "a.parquet")))
    before, began = peak_bytes(reset=True), time.process_time()
    rows = read_groups(index, [0])
    cpu_s = time.process_time() - began
    size = sum(map(len, cast(list[bytes], rows.encoded)))
    return {"memory_mb": (peak_bytes() - before) / 1e6, "over_its_bytes": (peak_bytes() - before) / size, "cpu_s": cpu_s}


def of_window(folder: Path, group_rows: int, num_rows: int = 54_000) -> dict[str, float]:
    """Peak memory and CPU-seconds until the first block of the first window is there, which has rows of each of its row groups."""
    from ray_sassl.data.reading import cached_index

    def write() -> None:
        draws = np.random.default_rng(0)
        schema = pa.schema({"image": pa.binary(), "label": pa.int64()})
        with pq.ParquetWriter(folder / "a.parquet", schema, use_dictionary=False) as file:
            for _ in range(0, num_rows, group_rows):
                file.write_table(pa.table({"image": [draws.bytes(30_000) for _ in range(group_rows)], "label": range(group_rows)}))

    _in_child(write)
    index = cached_index(DataConfig(path=str(folder / "a.parquet")), folder / "index")
    source = pipeline.ViewSource(str(folder / "index"), with_window(index.config, index), simclr(224), 0)
    window = source.plan.windows(0)[0]
    blocks = pipeline.encoded_windows(source, [window], SeenIds(index.num_rows), StageTimes())
    before, began, wall_began = peak_bytes(reset=True), time.process_time(), time.perf_counter()
    next(blocks)
    cpu_s, wall_s = time.process_time() - began, time.perf_counter() - wall_began
    memory = peak_bytes() - before
    window_bytes = window.num_rows * 30_000
    return {
        "window_mb": window_bytes / 1e6,
        "memory_mb": memory / 1e6,
        "over_its_bytes": memory / window_bytes,
        "cpu_s": cpu_s,
        "wall_s": wall_s,
    }


def of_store(folder: Path, kind: str) -> dict[str, float]:
    """Requests for each range, and the share of the time in which this process is at work and does not wait for the store, over two windows
    after a first one. Other work on the machine makes it wait longer, which counts."""
    from ray_sassl.data.reading import build_index, read_groups, read_runs
    from ray_sassl.files import storage
    from ray_sassl.pipeline import crop_rows

    with store(folder) as options:
        image = photograph(500, 375)
        for number in range(_WINDOW // _STORED_ROWS if kind != "folder" else _WINDOW):
            name, content = {"tar": _tar, "parquet": _parquet, "folder": lambda number, image: (f"{number}.jpg", image)}[kind](
                number, image
            )
            storage.write_bytes(f"s3://bucket/{kind}/{name}{options}", content)
        index = build_index(DataConfig(path=f"s3://bucket/{kind}{options}"))
        runs = np.arange(0, _WINDOW, _PIECE)

        def window() -> tuple[float, float]:
            """How long reading took, and the CPU-seconds of it."""
            began, cpu_began = time.monotonic(), time.process_time()
            whole = kind == "parquet"
            rows = read_groups(index, range(index.num_groups)) if whole else read_runs(index, runs, np.full(len(runs), _PIECE))
            passed = time.monotonic() - began, time.process_time() - cpu_began
            for first in range(0, _WINDOW, 256):
                crop_rows(rows.at(np.arange(first, first + 256)), [(ViewConfig(), 224)] * 2, 0, 0, 10**8, print)
            return passed

        window()
        (folder / "log").write_text("")
        cpu_began = time.process_time()
        read_s, read_cpu_s = np.sum([window(), window()], axis=0).tolist()
        cpu_s = time.process_time() - cpu_began
        methods = (folder / "log").read_text().split()
        busy = [busy_over_windows(index, folder, is_ahead=number % 2 == 1) for number in range(6)]
    ranges = 2 * {"tar": len(runs), "parquet": index.num_groups, "folder": _WINDOW}[kind]
    return {
        "gets_per_range": methods.count("GET") / ranges,
        "heads": methods.count("HEAD"),
        "read_s": read_s / 2,
        "read_cpu_s": read_cpu_s / 2,
        "all_cpu_s": cpu_s / 2,
        "busy": cpu_s / (cpu_s + max(0.0, read_s - read_cpu_s)),
        "busy_in_turn": statistics.median(busy[::2]),
        "busy_ahead": statistics.median(busy[1::2]),
    }


def busy_over_windows(index: Index, folder: Path, *, is_ahead: bool, num_windows: int = 4) -> float:
    """The same share over so many windows of a plan, read one after the other or each while the one before is used; the wait for the first
    counts."""
    index.save(folder / "index")
    data = index.config.model_copy(update={"shuffle_window": _WINDOW, "block_rows": 256})
    source = pipeline.ViewSource(str(folder / "index"), data, simclr(224), 0)
    cast(Any, pipeline)._AHEAD_BYTES = 2**30 if is_ahead else 0
    epochs = range(num_windows * _WINDOW // index.num_rows)
    windows = (window for epoch in epochs for window in source.plan.each_window(epoch))
    blocks = pipeline.encoded_windows(source, windows, SeenIds(index.num_rows), StageTimes())
    idle_s, all_began = 0.0, time.process_time()
    while True:
        began, cpu_began = time.monotonic(), time.process_time()
        block = next(blocks, None)
        idle_s += max(0.0, time.monotonic() - began - (time.process_time() - cpu_began))
        if block is None:
            break
        pipeline.crop_rows(block[1], [(ViewConfig(), 224)] * 2, 0, 0, 10**8, print)
    cpu_s = time.process_time() - all_began
    return cpu_s / (cpu_s + idle_s)


def of_listing(folder: Path, rows: int) -> dict[str, float]:
    """Memory and CPU-seconds, without those of the server, to list a folder of an object store and to build its index."""
    from ray_sassl.data.reading import build_index

    def index_of(count: int) -> Index:
        return build_index(DataConfig(path=f"s3://bucket/{count}{options}"))

    with _serving(_PAGES, str(folder)) as options:
        index_of(10)
        before, began, cpu_began = peak_bytes(reset=True), time.monotonic(), time.process_time()
        index = index_of(rows)
        assert index.num_rows == rows
        cpu_s = time.process_time() - cpu_began
        pages = len((folder / "log").read_text().split()) - 1
        return {"memory_mb": (peak_bytes() - before) / 1e6, "cpu_s": cpu_s, "wall_s": time.monotonic() - began, "pages": pages}


def _tar(number: int, image: bytes) -> tuple[str, bytes]:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for row in range(_STORED_ROWS):
            info = tarfile.TarInfo(f"{row:05d}.jpg")
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return f"{number}.tar", out.getvalue()


def _parquet(number: int, image: bytes) -> tuple[str, bytes]:
    out = io.BytesIO()
    pq.write_table(pa.table({"image": [image] * _STORED_ROWS, "label": range(_STORED_ROWS)}), out, row_group_size=64, use_dictionary=False)
    return f"{number}.parquet", out.getvalue()


_SERVER = """
import sys, threading, time
from pathlib import Path
from tests.flaky_store import FlakyStore, s3_server

folder, latency_s = Path(sys.argv[1]), float(sys.argv[2])
with s3_server() as target:
    store = FlakyStore(target)
    log = (folder / "log").open("a")

    def plan(method, path):
        log.write(method + chr(10))
        log.flush()
        if method in ("GET", "HEAD"):  # objects are written one after the other, which is not measured
            time.sleep(latency_s)

    store.plan = plan
    threading.Thread(target=store.serve_forever, daemon=True).start()
    print(store.options(), flush=True)
    sys.stdin.read()
"""


_PAGES = """
import sys, threading, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

log = (Path(sys.argv[1]) / "log").open("a")

class Pages(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_GET(self):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        prefix, first = query.get("prefix", ""), int(query.get("continuation-token", 0))
        count = int(prefix.strip("/") or 0)
        last = min(count, first + 1000)
        numbers = range(first, last)
        parts = [
            f"<Contents><Key>{prefix}n{i // 1300:08d}/n{i // 1300:08d}_{i:08d}.JPEG</Key>"
            f"<LastModified>2024-05-01T12:00:00.000Z</LastModified>"
            f"<ETag>&quot;{i:032x}&quot;</ETag><Size>110000</Size></Contents>"
            for i in numbers
        ]
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>" if last < count else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        body = f"<ListBucketResult xmlns='{space}'>{more}<KeyCount>{len(parts)}</KeyCount>{''.join(parts)}</ListBucketResult>".encode()
        log.write("GET" + chr(10))
        log.flush()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(f"?scheme=http&endpoint_override=127.0.0.1:{server.server_address[1]}&region=us-east-1", flush=True)
sys.stdin.read()
"""


def store(folder: Path) -> AbstractContextManager[str]:
    """What URIs of an S3 server in another process have behind their path; it writes the requests' methods to `log` in the folder."""
    return _serving(_SERVER, str(folder), str(LATENCY_S))


@contextmanager
def _serving(program: str, *words: str) -> Iterator[str]:
    """What URIs of a server in another process have behind their path; the server prints it."""
    command = [sys.executable, "-c", program, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing", AWS_EC2_METADATA_DISABLED="true")
        try:
            yield next(line.strip() for line in server.stdout if line.startswith("?"))
        finally:
            server.stdin.close()


def photograph(width: int, height: int) -> bytes:
    """A JPEG with the file size of a photograph, some 2 bits per pixel."""
    draws = np.random.default_rng(0)
    rough = Image.fromarray(draws.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), np.uint8)).resize((width, height))
    noise = Image.fromarray(draws.integers(0, 256, (height, width, 3), np.uint8))
    out = io.BytesIO()
    Image.blend(rough, noise, 0.12).save(out, "JPEG", quality=85)
    return out.getvalue()


def _in_child(work: Any) -> None:
    """Do something whose memory must not count."""
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
        return
    work()
    os._exit(0)


def peak_bytes(reset: bool = False) -> int:
    """The largest memory of this process so far; `reset` starts counting anew, from what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next((line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")), "")
    return int(line.split()[1]) * 1024 if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(found: list[tuple[Case, dict[str, float]]]) -> None:
    """One table for each thing that was measured."""
    for what in dict.fromkeys(case.what for case, _ in found):
        rows = [(case, values) for case, values in found if case.what == what]
        table = Table("rows", "layout", *rows[0][1], title=what)
        for case, values in rows:
            table.add_row(f"{case.rows:,}" if case.rows else "", case.layout, *(f"{value:,.3g}" for value in values.values()))
        Console(width=120).print(table)


def goals(found: list[tuple[Case, dict[str, float]]]) -> list[Goal]:
    """What was aimed at, of what was measured."""

    def all_of(what: str, name: str) -> list[float]:
        return [values[name] for case, values in found if case.what == what]

    blocks = [values["memory_mb"] - values["crops_mb"] - values["decoded_mb"] for case, values in found if case.what == "block"]
    wanted: list[tuple[str, list[float], str, float]] = [
        ("MB of the index in a worker", all_of("worker", "memory_mb"), "at most", 50),
        ("MB of the driver that puts the index together", all_of("driver", "memory_mb"), "at most", 1000),
        ("CPU-s of the driver that puts the index together", all_of("driver", "cpu_s"), "at most", 60),
        ("MB of a block besides its crops and one decoded image", blocks, "at most", 30),
        ("memory of a row group over its bytes", all_of("group", "over_its_bytes"), "at most", 1.3),
        ("GETs for each range", all_of("store", "gets_per_range"), "at most", 1.1),
        ("HEADs", all_of("store", "heads"), "at most", 0),
    ]
    reached = [Goal(what, max(values), cast(Any, bound), goal) for what, values, bound, goal in wanted if values]
    if busy := all_of("store", "busy"):
        reached.append(Goal("share of the time in which the core is at work", min(busy), "at least", 0.8))
    return reached


if __name__ == "__main__":
    main()
