"""What the Python API does on actors, from inside a running event loop, as in a notebook."""

import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ray_sassl
from tests.test_api import overrides_for, write_photos


@pytest.mark.ray
def test_whole_data_sets_are_worked_on_from_a_running_loop(ray_cluster: None, tmp_path: Path):
    photos = write_photos(tmp_path / "photos")
    run = ray_sassl.pretrain("moco_cifar10_cpu", tmp_path / "run", overrides=overrides_for(photos))

    async def work() -> None:
        assert ray_sassl.check_data(photos, show_progress=False).bad_rows == []
        shards = str(tmp_path / "shards")
        assert ray_sassl.convert_data(photos, shards, "parquet", shard_rows=32, show_progress=False).num_rows == 48
        embedded = ray_sassl.embed(run.run_dir, shards, str(tmp_path / "features.parquet"), actors=1, show_progress=False)
        assert pq.read_table(embedded.out).num_rows == 48
        styled = ray_sassl.stylize_dataset(
            shards, str(tmp_path / "styled"), overrides={"stylize": "color_statistics"}, actors=1, show_progress=False
        )
        assert styled.num_rows == 48

    asyncio.run(work())
