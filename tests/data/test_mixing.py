from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.mixing import mixing_of
from ray_sassl.data.plan import plan_of
from ray_sassl.data.reading import build_index
from ray_sassl.process.errors import UsageError


def _parquet(folder: Path, labels: np.ndarray, group_rows: int) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table({"image": [b"x" * 100] * len(labels), "label": labels})
    pq.write_table(table, folder / "a.parquet", row_group_size=group_rows, compression="NONE", use_dictionary=False)
    return folder


def _folder(folder: Path) -> Path:
    for row in range(200):
        path = folder / "ab"[row // 100] / f"{row}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return folder


def test_what_is_told_is_what_the_plan_deals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_sassl.data.mixing._OF_A_WINDOW", 100)
    data = DataConfig(path=str(_parquet(tmp_path / "p", np.arange(4000) // 40, 200)), shuffle_gb=0.0001, block_rows=50)
    index = build_index(data)
    found = mixing_of(index, data, batch_size=50)
    plan = plan_of(index, data, seed=0)
    ids = np.concatenate([block.sample_id for window in plan.each_window(0) for block in plan.blocks(window)])
    counts = [np.unique(batch // 40, return_counts=True)[1] for batch in np.split(ids, 80)][: found.num_batches]
    assert found.classes == pytest.approx(np.mean([len(number) for number in counts]))
    assert found.fewest_classes == min(len(number) for number in counts)
    assert found.same_class_pairs == pytest.approx(np.mean([(number * (number - 1)).sum() / (50 * 49) for number in counts]))
    assert found.by == "labels"
    assert found.uniform_pairs == pytest.approx(39 / 3999)
    assert found.uniform_classes == pytest.approx(100 * (1 - 0.99**50))
    assert found.is_poor
    assert "data.shuffle_gb" in found.in_words()
    assert "convert" in found.in_words()


def test_mixed_data_are_mixed_well_whatever_the_window(tmp_path: Path):
    labels = np.random.default_rng(0).permutation(np.arange(4000) // 40)
    data = DataConfig(path=str(_parquet(tmp_path / "p", labels, 200)), shuffle_gb=0.0001, block_rows=50)
    found = mixing_of(build_index(data), data, batch_size=50)
    assert not found.is_poor
    assert found.same_class_pairs == pytest.approx(found.uniform_pairs, rel=0.3)
    assert "\n" not in found.in_words()


def test_a_sample_of_row_groups_tells_what_a_uniform_shuffle_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_sassl.data.mixing._GROUPS", 120)
    data = DataConfig(path=str(_parquet(tmp_path / "p", np.arange(8000) // 80, 20)), shuffle_gb=0.0001, block_rows=50)
    found = mixing_of(build_index(data), data, batch_size=50)
    assert found.uniform_pairs == pytest.approx(0.01, rel=0.4)
    assert found.uniform_classes == pytest.approx(100 * (1 - 0.99**50), rel=0.1)


def test_without_labels_the_folders_or_the_shards_are_the_classes(tmp_path: Path):
    data = DataConfig(path=str(_folder(tmp_path / "f")), label_column=None)
    found = mixing_of(build_index(data), data, batch_size=20)
    assert (found.by, found.fewest_classes, found.is_poor) == ("folders", 2, False)
    for name in "ab":
        _parquet(tmp_path / name, np.zeros(100, np.int64), 10)
    data = DataConfig(path=(str(tmp_path / "a"), str(tmp_path / "b")), label_column=None)
    found = mixing_of(build_index(data), data, batch_size=20)
    assert (found.by, found.uniform_classes) == ("files", pytest.approx(2))
    data = DataConfig(path=str(tmp_path / "a"), label_column=None)
    assert mixing_of(build_index(data), data, batch_size=20).in_words().startswith("No files tell the images apart")


def test_a_batch_of_more_than_all_rows_is_refused(tmp_path: Path):
    data = DataConfig(path=str(_folder(tmp_path / "f")))
    with pytest.raises(UsageError, match="201 cannot be made of 200 rows"):
        mixing_of(build_index(data), data, batch_size=201)
