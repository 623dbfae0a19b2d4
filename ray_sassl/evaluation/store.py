"""Features on disk: one Parquet file for an encoder, a data set and a preprocessing, with all three in its metadata.

Columns: `sample_id` int64, `label` int64, `features` fixed-size list of float32. The file is named after its provenance, which is also read
back and compared, so that features are never mistaken for those of another encoder or other images.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import nn

from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.files import storage
from ray_sassl.nn.digest import weights_sha256

log = logging.getLogger(__name__)

_VERSION = "2"
_GROUP_ROWS = 8192
_PROVENANCE, _FACTS = b"provenance", b"facts"

Provenance = dict[str, str]
"""What features depend on: equal provenances mean equal features."""


def encoder_digest(encoder: nn.Module) -> str:
    """sha256 of the network's structure (its printed form) and its weights."""
    return hashlib.sha256(f"{encoder!r}\0{weights_sha256(encoder)}".encode()).hexdigest()


def file_name(provenance: Provenance) -> str:
    """The name of the file that holds features of this provenance."""
    text = json.dumps({"version": _VERSION, **provenance}, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.parquet"


@dataclass(frozen=True)
class FeatureStore:
    """A folder of features, a path or URI.

    Attributes:
        facts: JSON values about the encoder to note in each file, such as its checkpoint.
    """

    folder: str
    facts: dict[str, Any]

    def write(self, part: LabeledFeatures, provenance: Provenance, facts: dict[str, Any]) -> str:
        """Write features of this provenance to the folder atomically, with more facts; returns the file's path."""
        features = np.ascontiguousarray(part.features, np.float32)
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        metadata = {_PROVENANCE: json.dumps(provenance, sort_keys=True), _FACTS: json.dumps({**self.facts, **facts})}
        table = pa.table({"sample_id": part.sample_id, "label": part.labels, "features": values}).replace_schema_metadata(metadata)
        path = storage.join(self.folder, file_name(provenance))
        with storage.open_atomic(path) as file:
            pq.write_table(table, file, row_group_size=_GROUP_ROWS, compression="none", use_dictionary=False, write_statistics=False)
        return path

    def read(self, provenance: Provenance) -> tuple[LabeledFeatures, dict[str, Any]] | None:
        """The features of this provenance and their facts, or None if the folder has none; a damaged file is logged."""
        path = storage.join(self.folder, file_name(provenance))
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
            metadata = table.schema.metadata or {}
            if json.loads(metadata[_PROVENANCE]) != provenance:
                raise ValueError("it is of another encoder or of other images")
            column = table["features"]
            width = column.type.list_size
            chunks = [np.asarray(chunk.values, np.float32).reshape(-1, width) for chunk in column.chunks]
            part = LabeledFeatures(np.concatenate(chunks), *(np.array(table[name].to_numpy()) for name in ("label", "sample_id")))
            return part, json.loads(metadata[_FACTS])
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError, KeyError, AttributeError) as error:
            log.warning("Cannot use the features in %s (%s); they are computed again.", path, error)
            return None
