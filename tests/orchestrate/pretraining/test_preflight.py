"""What is wrong with the arguments is said before a cluster is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.orchestrate.pretraining import launch
from ray_sassl.orchestrate.pretraining.preflight import stream_needs
from ray_sassl.process.errors import UsageError
from tests.orchestrate.conftest import NUM_ROWS, small_config, write_shards


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def session(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(launch, "ray_session", session)


def test_a_batch_that_is_larger_than_the_data_set_is_refused(tmp_path: Path):
    config = small_config(write_shards(tmp_path))
    batch = 16 * (NUM_ROWS // 4)
    larger = apply_overrides(config, [f"train.global_batch={batch}", "train.epochs=1"])
    with pytest.raises(UsageError, match=rf"make no full batch of train\.global_batch={batch}; use a smaller batch or more epochs"):
        launch.pretrain(larger, str(tmp_path / "run"))
    with pytest.raises(AssertionError, match="Ray was started"):
        launch.pretrain(config, str(tmp_path / "run"))


def test_the_stream_begins_with_its_first_tasks_and_stylizers(tmp_path: Path):
    changes = ["stream.initial_tasks=6", "stream.node_group=decode"]
    config = apply_overrides(small_config(write_shards(tmp_path)), changes)
    assert [(need.count, need.each, need.group) for need in stream_needs(config)] == [(6, {"CPU": config.stream.num_cpus}, "decode")]
    pool = [
        "stylize=color_statistics",
        "stream.layout=pool",
        "stream.pool.max=4",
        "stream.pool.num_gpus=0.5",
        "stream.pool.node_group=style",
    ]
    _, stylizers = stream_needs(apply_overrides(config, pool))
    assert (stylizers.count, stylizers.each["GPU"], stylizers.group) == (1, 0.5, "style")
    assert [need.count for need in stream_needs(apply_overrides(config, [*pool, "stream.pool.initial=3"]))] == [6, 3]


def test_data_of_which_too_much_cannot_be_listed_is_refused(tmp_path: Path):
    path = Path(write_shards(tmp_path))
    config = small_config(str(path))
    folder = path if path.is_dir() else path.parent
    for number in range(8):
        (folder / f"train-9{number}.parquet").write_bytes(b"no Parquet")
    with pytest.raises(UsageError, match=r"data\.max_bad_fraction|cannot be read"):
        launch.pretrain(config, str(tmp_path / "run"))
