"""Features of whole data sets as Parquet: the content of the parts, and how one process computes a part.

A part is the rows of a few consecutive row groups. Its name and content depend only on the encoder and the data, and it appears whole or
not at all, so a stopped job continues with the missing parts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_sassl.data import NO_LABEL, Rows
from ray_sassl.data.ahead import ahead
from ray_sassl.data.decode import decode_rows
from ray_sassl.data.index import Index
from ray_sassl.data.plan import portions
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.data.reading import all_labels, each_group
from ray_sassl.exporting.encoder import Encoder, EncoderFacts
from ray_sassl.files import storage
from ray_sassl.files.json_files import as_mapping, parse_json, read_json
from ray_sassl.files.own import mark_file, mark_folder
from ray_sassl.nn.chunks import Chunks
from ray_sassl.process.errors import UsageError

MANIFEST = "embedding.json"
PROVENANCE = b"ray_sassl"
"""The key of the plan in the metadata of the Parquet files."""
BATCH_ROWS = 64
PART_ROWS = 4096


@dataclass(frozen=True)
class EmbeddingPlan:
    """Which data are embedded by which encoder; stored in `embedding.json` and in the metadata of each file.

    Attributes:
        encoder: Facts about the encoder.
        data_path: The data set's path as it was given.
        data_fingerprint: Fingerprint of the data set's index.
        num_rows: Rows of the data set.
        part_rows: Approximate rows per part.
        num_parts: Number of parts.
        has_labels: Whether there is a column `label`.
    """

    encoder: EncoderFacts
    data_path: tuple[str, ...]
    data_fingerprint: str
    num_rows: int
    part_rows: int
    num_parts: int
    has_labels: bool

    @classmethod
    def of(cls, index: Index, facts: EncoderFacts, part_rows: int = PART_ROWS) -> EmbeddingPlan:
        has_labels = bool((all_labels(index) != NO_LABEL).any())
        parts = parts_of(index, part_rows)
        return cls(facts, index.config.paths, index.fingerprint, index.num_rows, part_rows, len(parts), has_labels)

    @cached_property
    def tree(self) -> dict[str, object]:
        """The plan as JSON values."""
        return json.loads(json.dumps({**asdict(self), "encoder": self.encoder.model_dump(mode="json")}))

    @property
    def essence(self) -> dict[str, object]:
        """The fields that must be equal for parts of two plans to be mixed: the checkpoint's weights, but not its path."""
        facts = self.encoder.model_dump(mode="json")
        encoder = {name: facts[name] for name in ("weights_sha256", "size_px", "crop", "interpolation", "pixel_mean", "pixel_std")}
        return {**encoder, **{name: self.tree[name] for name in ("data_fingerprint", "part_rows", "has_labels")}}

    @property
    def schema(self) -> pa.Schema:
        """Columns `sample_id`, `key` (where the row came from), `label` (-1 for a row without a label) and `features`."""
        features = pa.list_(pa.float32(), self.encoder.num_features)
        label = [("label", pa.int64())] if self.has_labels else []
        columns = [("sample_id", pa.int64()), ("key", pa.string()), *label, ("features", features)]
        return pa.schema(columns, metadata={PROVENANCE: json.dumps(self.tree)})


def parts_of(index: Index, part_rows: int) -> list[list[int]]:
    """The row groups of each part: consecutive ones of about `part_rows` rows in all; one part without any if there are no rows."""
    return portions(index, part_rows) or [[]]


class Embedder:
    """An encoder on a device, with threads that decode the next images while it works.

    Args:
        encoder: The encoder; it is moved to the device.
        device: Where it computes.
        num_threads: Threads for decoding; torch gets as many.
    """

    def __init__(self, encoder: Encoder, device: torch.device, num_threads: int) -> None:
        torch.set_num_threads(max(1, num_threads))
        self.encoder = encoder.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.device = device
        self.num_threads = max(1, num_threads)
        self._chunks = Chunks(BATCH_ROWS)

    def part(self, index: Index, plan: EmbeddingPlan, groups: list[int]) -> tuple[pa.Table, list[BadRow]]:
        """One part's table, and the rows that could not be decoded and are not in it."""
        tables, bad = [], []
        for rows in each_group(index, groups):
            good, features, lost = self.embed(rows, index.config.max_pixels)
            bad += lost
            columns: dict[str, object] = {"sample_id": rows.sample_id[good], "key": [rows.key[at].removeprefix(index.root) for at in good]}
            columns |= {"label": rows.label[good]} if plan.has_labels else {}
            columns["features"] = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), plan.encoder.num_features)
            tables.append(pa.table(columns, schema=plan.schema))
        return pa.concat_tables(tables) if tables else plan.schema.empty_table(), bad

    def embed(self, rows: Rows, max_pixels: int) -> tuple[list[int], np.ndarray, list[BadRow]]:
        """Places of the rows that can be decoded, their features (n, F) float32, and the problems of the others."""
        good: list[int] = []
        bad: list[BadRow] = []
        features = [np.empty((0, self.encoder.num_features), np.float32)]
        for first, pixels, places, lost in self._decoded(rows, max_pixels):
            good += [first + place for place in places]
            bad += lost
            if pixels is not None:
                features += [chunk for _, chunk in self._chunks.map(lambda at, x=pixels: self._encoded(x[at]), np.arange(len(pixels)))]
        return good, np.concatenate(features), bad

    def _encoded(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device)
            return self.encoder(self.encoder.preprocess.normalize(x)).float().cpu().numpy()

    def _decoded(self, rows: Rows, max_pixels: int) -> Iterator[tuple[int, np.ndarray | None, list[int], list[BadRow]]]:
        """For each batch, its first place, its images, their places in it and the bad rows; the next batch is decoded meanwhile."""

        def decoded(ids: np.ndarray) -> list[np.ndarray | BadRow]:
            return decode_rows(rows.take(ids), max_pixels, self.encoder.preprocess.pixels)

        with ThreadPoolExecutor(self.num_threads) as pool:

            def start(first: int) -> tuple[int, list[Future[list[np.ndarray | BadRow]]]]:
                ids = rows.sample_id[first : first + BATCH_ROWS]
                return first, [pool.submit(decoded, part) for part in np.array_split(ids, min(self.num_threads, len(ids)))]

            for first, started in ahead(start, range(0, len(rows), BATCH_ROWS), 1):
                images = [image for future in started for image in future.result()]
                places = [place for place, image in enumerate(images) if not isinstance(image, BadRow)]
                pixels = np.stack([image for image in images if not isinstance(image, BadRow)]) if places else None
                yield first, pixels, places, [image for image in images if isinstance(image, BadRow)]


def part_name(part: int) -> str:
    """The name of a part's file."""
    return f"part-{part:06d}.parquet"


def write_part(folder: str, part: int, table: pa.Table, bad: list[BadRow]) -> None:
    """Write a part to the folder, and the rows that are not in it to a file next to it."""
    if bad:
        quarantine = Quarantine(num_rows=1, max_bad_fraction=float("inf"))
        quarantine.add(bad)
        quarantine.save_jsonl(storage.join(folder, f"part-{part:06d}.bad.jsonl"))
    with storage.open_atomic(storage.join(folder, part_name(part))) as file:
        pq.write_table(table, file, compression="NONE", use_dictionary=False)


def open_parts(folder: str, plan: EmbeddingPlan) -> list[int]:
    """Prepare the folder, and return the numbers of the missing parts.

    Raises:
        UsageError: the folder contains something else, or features of another encoder or other data.
    """
    names = {storage.name_of(entry.path) for entry in storage.list_dir(folder)}
    manifest = storage.join(folder, MANIFEST)
    if MANIFEST in names:
        check_same(read_json(manifest) or {}, plan, folder)
    elif any(not name.startswith(".") for name in names):
        raise UsageError(f"{folder} is not empty and has no {MANIFEST}, so no embedding can continue there; choose another folder")
    else:
        storage.write_text(manifest, json.dumps(plan.tree, indent=2) + "\n")
    mark_folder(folder, known=None)
    return [part for part in range(plan.num_parts) if part_name(part) not in names]


def check_same(then: dict, plan: EmbeddingPlan, where: str) -> None:
    """Check that existing features are those of the plan.

    Raises:
        UsageError: they are from another encoder or other data, or divided into other parts.
    """
    before = {**as_mapping(then.get("encoder")), **then}
    changed = [f"{name} was {before.get(name)!r} and is {value!r}" for name, value in plan.essence.items() if before.get(name) != value]
    if changed:
        raise UsageError(f"{where} contains other features: {'; '.join(changed)}. Give another --out.")


def merge_parts(folder: str, plan: EmbeddingPlan, out: str) -> None:
    """Write all parts, in their order, as one file.

    Raises:
        UsageError: a part is damaged.
    """
    with storage.open_atomic(out) as file, pq.ParquetWriter(file, plan.schema, compression="NONE", use_dictionary=False) as writer:
        for part in range(plan.num_parts):
            path = storage.join(folder, part_name(part))
            filesystem, inner = storage.filesystem_of(path)
            try:
                table = pq.read_table(inner, filesystem=filesystem).cast(plan.schema)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise UsageError(f"{path} is damaged ({error}); delete it, and the same command makes it again") from error
            writer.write_table(table)
    mark_file(out)


def plan_of(path: str) -> dict | None:
    """The plan in the metadata of a file of features, or None if it has none.

    Raises:
        UsageError: it is not such a file.
    """
    filesystem, inner = storage.filesystem_of(path)
    try:
        text = (pq.read_schema(inner, filesystem=filesystem).metadata or {}).get(PROVENANCE)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path} is there already, and cannot be read as features ({error}). Delete it, or give another --out.") from error
    return as_mapping(parse_json(text, path)) if text else None


def parts_bad_rows(folder: str) -> list[BadRow]:
    """The rows that are in no part, from the lists next to the parts."""
    quarantine = Quarantine(num_rows=1, max_bad_fraction=float("inf"))
    for entry in storage.list_dir(folder):
        if storage.without_options(entry.path).endswith(".bad.jsonl"):
            quarantine.load_jsonl(entry.path)
    return quarantine.rows
