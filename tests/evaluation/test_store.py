"""Features on disk, with their provenance."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch import nn

from ray_sassl.evaluation import LabeledFeatures
from ray_sassl.evaluation.store import FeatureStore, encoder_digest, file_name

PROVENANCE = {"encoder": "a", "data": "b", "preprocessing": "c", "change": "none"}


def _part(num: int = 9000) -> LabeledFeatures:
    rng = np.random.default_rng(0)
    return LabeledFeatures(rng.normal(size=(num, 3)).astype(np.float32), rng.integers(0, 5, num), np.arange(num) * 2)


def test_features_come_back_as_they_were_with_their_facts(tmp_path: Path):
    part = _part()
    store = FeatureStore(str(tmp_path), {"step": 7})
    path = store.write(part, PROVENANCE, {"bad_rows": []})
    found = store.read(PROVENANCE)
    assert found is not None
    assert found[0].features.dtype == np.float16
    assert np.array_equal(found[0].features, part.features.astype(np.float16))
    for name in ("labels", "sample_id"):
        assert np.array_equal(getattr(found[0], name), getattr(part, name))
    assert found[1] == {"step": 7, "bad_rows": []}
    assert set(safetensors.numpy.load_file(path)) == {"features", "label", "sample_id"}


def test_features_of_anything_else_are_not_found(tmp_path: Path):
    FeatureStore(str(tmp_path), {}).write(_part(5), PROVENANCE, {})
    for name in PROVENANCE:
        assert FeatureStore(str(tmp_path), {}).read(PROVENANCE | {name: "other"}) is None


def test_features_under_a_wrong_name_are_refused(tmp_path: Path, caplog):
    other = PROVENANCE | {"encoder": "other"}
    Path(FeatureStore(str(tmp_path), {}).write(_part(5), PROVENANCE, {})).rename(tmp_path / file_name(other))
    with caplog.at_level(logging.WARNING):
        assert FeatureStore(str(tmp_path), {}).read(other) is None
    assert "of another encoder" in caplog.text


def test_a_damaged_file_is_named_and_not_used(tmp_path: Path, caplog):
    path = Path(FeatureStore(str(tmp_path), {}).write(_part(5), PROVENANCE, {}))
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert FeatureStore(str(tmp_path), {}).read(PROVENANCE) is None
    assert path.name in caplog.text


@pytest.mark.parametrize("facts", ["null", "5", "[5]", '{"bad_rows": 5}', '{"bad_rows": [{"path": 1}]}', '{"bad_rows": ["x"]}'])
def test_facts_of_another_shape_are_nowhere_an_error(tmp_path: Path, facts: str):
    path = Path(FeatureStore(str(tmp_path), {}).write(_part(5), PROVENANCE, {}))
    metadata = {"provenance": json.dumps(PROVENANCE), "facts": facts}
    path.write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(path), metadata))
    found = FeatureStore(str(tmp_path), {}).read(PROVENANCE)
    assert found is None or found[1]["bad_rows"] == []


def test_the_digest_follows_every_weight_buffer_and_the_structure():
    def network(activation: nn.Module) -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), activation)

    same, other = encoder_digest(network(nn.ReLU())), encoder_digest(network(nn.GELU()))
    assert encoder_digest(network(nn.ReLU())) == same != other
    for name in network(nn.ReLU()).state_dict():
        changed = network(nn.ReLU())
        changed.state_dict()[name].view(-1)[0] += 1
        assert encoder_digest(changed) != same, name
