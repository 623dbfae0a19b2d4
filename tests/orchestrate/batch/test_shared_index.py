from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.orchestrate.batch import shared_index as module
from ray_sassl.orchestrate.batch.shared_index import shared_index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    pq.write_table(pa.table({"image": [b"x"] * 40_000, "label": range(40_000)}), tmp_path / "a.parquet", row_group_size=4)
    return build_index(DataConfig(path=str(tmp_path / "a.parquet")))


def test_on_one_machine_processes_get_a_path_and_map_its_file_once(index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_one_machine", lambda: True)
    with shared_index(index) as shared:
        sent = pickle.dumps(shared)
        assert len(sent) < 1000 < len(pickle.dumps(index))
        there = pickle.loads(sent)
        assert there is pickle.loads(pickle.dumps(there))
        assert there.mapped is not None
        assert (there.fingerprint, there.config) == (index.fingerprint, index.config)
        assert np.array_equal(read_groups(there, [3]).label, read_groups(index, [3]).label)
        path = Path(shared.shared_path)
    assert not path.exists()


def test_on_a_cluster_or_without_a_cache_folder_it_is_sent_as_it_is(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(module, "is_one_machine", lambda: False)
    with shared_index(index) as shared:
        assert shared is index
    monkeypatch.setattr(module, "is_one_machine", lambda: True)
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "indexes_dir", lambda: tmp_path / "file")
    with shared_index(index) as shared:
        assert pickle.loads(pickle.dumps(shared)).fingerprint == index.fingerprint


def test_the_file_of_a_command_that_was_killed_is_deleted_by_the_next_one(index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_one_machine", lambda: True)
    left = module.indexes_dir() / "killed.shared"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"an index")
    with shared_index(index) as one, shared_index(index) as other:
        assert not left.exists()
        assert one.shared_path != other.shared_path
        assert Path(one.shared_path).exists(), "that of a command at work stays"
        assert Path(other.shared_path).exists()
    assert not list(left.parent.glob("*.shared"))
