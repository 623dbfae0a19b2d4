"""Features on disk: one file for an encoder, a data set and a preprocessing, with all three in its metadata; see `feature_files.py`.

The file is named after its provenance, which is also read back and compared, so that features are never mistaken for those of another
encoder or other images.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from torch import nn

from ray_sassl.data.quarantine import is_bad_row
from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.evaluation.feature_files import read_features, write_features
from ray_sassl.files import storage
from ray_sassl.files.json_files import as_mapping, parse_json
from ray_sassl.nn.digest import weights_sha256

log = logging.getLogger(__name__)

_VERSION = "3"
_PROVENANCE, _FACTS = "provenance", "facts"

Provenance = dict[str, str]
"""What features depend on: equal provenances mean equal features."""


def encoder_digest(encoder: nn.Module) -> str:
    """sha256 of the network's structure (its printed form) and its weights."""
    return hashlib.sha256(f"{encoder!r}\0{weights_sha256(encoder)}".encode()).hexdigest()


def file_name(provenance: Provenance) -> str:
    """The name of the file that holds features of this provenance."""
    text = json.dumps({"version": _VERSION, **provenance}, sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


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
        metadata = {_PROVENANCE: json.dumps(provenance, sort_keys=True), _FACTS: json.dumps({**self.facts, **facts})}
        path = storage.join(self.folder, file_name(provenance))
        with storage.open_atomic(path) as file:
            write_features(file, part, metadata)
        return path

    def read(self, provenance: Provenance) -> tuple[LabeledFeatures, dict[str, Any]] | None:
        """The features of this provenance and their facts (with `bad_rows`), or None if the folder has none; a damaged file is logged."""
        path = storage.join(self.folder, file_name(provenance))
        try:
            part, metadata = read_features(path)
            if parse_json(metadata[_PROVENANCE], _PROVENANCE) != provenance:
                raise ValueError("it is of another encoder or of other images")
            facts = as_mapping(parse_json(metadata[_FACTS], _FACTS))
            bad = facts.setdefault("bad_rows", [])
            if not isinstance(bad, list) or not all(isinstance(row, dict) and is_bad_row(row) for row in bad):
                raise ValueError("its list of bad rows is damaged")
            return part, facts
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("Cannot use the features in %s (%s); they are computed again.", path, error)
            return None
