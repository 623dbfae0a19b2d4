from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from ray_sassl.data import DataConfig
from ray_sassl.data.index import Index
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.orchestrate.batch import shared_index as module
from ray_sassl.orchestrate.batch.shared_index import shared_index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    pq.write_table(pa.table({"image": [b"x"] * 40_000, "label": range(40_000)}), tmp_path / "a.parquet", row_group_size=4)
    return build_index(DataConfig(path=str(tmp_path / "a.parquet")))


def _path(index: Index) -> str:
    assert index.sent_as is not None
    return index.sent_as[1]


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
        path = Path(_path(shared))
    assert not path.exists()


@pytest.mark.ray
@pytest.mark.parametrize("is_one_machine", [False, True], ids=["cluster", "no cache folder"])
def test_otherwise_processes_map_one_copy_in_the_store_of_their_node(
    ray_cluster: None, index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_one_machine: bool
):
    monkeypatch.setattr(module, "is_one_machine", lambda: is_one_machine)
    (tmp_path / "file").touch()
    monkeypatch.setattr(module, "indexes_dir", lambda: tmp_path / "file")

    def look(sent: Index, again: Index) -> tuple[int, int, bool, str]:
        """Where the numbers of rows of all groups begin and how many bytes they take, in this process."""
        buffer = again.groups["num_rows"].chunks[0].buffers()[1]
        is_in_store = any(
            int(begin, 16) <= buffer.address < int(end, 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "plasma" in line or "/dev/shm" in line
            for begin, end in [line.split()[0].split("-")]
        )
        return len(again.group_rows), buffer.size, is_in_store and sent is again, again.fingerprint

    with shared_index(index) as shared:
        task = ray.remote(num_cpus=0.5)(look)
        found = ray.get([task.remote(shared, shared) for _ in range(3)])
        assert found == [(10_000, found[0][1], True, index.fingerprint)] * 3
        assert found[0][1] >= 40_000


def test_the_file_of_a_command_that_was_killed_is_deleted_by_the_next_one(index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "is_one_machine", lambda: True)
    left = module.indexes_dir() / "killed.shared"
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"an index")
    with shared_index(index) as one, shared_index(index) as other:
        assert not left.exists()
        assert _path(one) != _path(other)
        assert Path(_path(one)).exists(), "that of a command at work stays"
        assert Path(_path(other)).exists()
    assert not list(left.parent.glob("*.shared"))
