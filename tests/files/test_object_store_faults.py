"""An object store that refuses, dawdles and hangs up: waited out, or a clear error; what was half put is never taken for whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_sassl.data import DataConfig
from ray_sassl.data.reading import build_index, read_groups
from ray_sassl.files import storage
from ray_sassl.train.checkpoint import latest_checkpoint
from ray_sassl.train.checkpoint_folder import list_checkpoints, whole_checkpoints
from ray_sassl.train.context import LocalContext
from ray_sassl.train.saving import CheckpointNotWrittenError
from tests.flaky_store import Fault, FlakyStore, flaky_store
from tests.train.conftest import assert_same_checkpoints, run_here, tiny_config, tiny_data  # noqa: F401 - fixtures

pytestmark = pytest.mark.slow

CLIENT_TRIES = 31
"""How often pyarrow's S3 client tries by itself, every 0.2 s, before it gives up; from then on it is ours to try again."""


@pytest.fixture(scope="module")
def server() -> Iterator[FlakyStore]:
    with flaky_store() as store:
        yield store


@pytest.fixture
def store(server: FlakyStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyStore]:
    """The store, with short pauses between tries."""
    monkeypatch.setattr(storage, "_PAUSES_S", (0.01,))
    server.log.clear()
    yield server
    server.plan = lambda method, path: None


def _at(store: FlakyStore, *parts: str) -> str:
    return storage.join(f"s3://bucket{store.options()}", *parts)


def _first(times: int, fault: Fault, method: str, name: str) -> Callable[[str, str], Fault]:
    """A plan by which the first so many requests of a kind for a name fail."""
    left = iter(range(times))

    def plan(how: str, path: str) -> Fault:
        return fault if how == method and name in path and next(left, None) is not None else None

    return plan


@pytest.mark.parametrize("fault", ["busy", "cut"])
def test_a_read_that_fails_for_a_while_is_retried_until_it_works(store: FlakyStore, fault: Fault, caplog: pytest.LogCaptureFixture):
    path = _at(store, fault, "a.bin")
    content = np.random.default_rng(0).bytes(300_000)
    store.plan = _first(CLIENT_TRIES + 2, fault, "PUT", "a.bin")
    with caplog.at_level(logging.WARNING):
        storage.write_bytes(path, content)
    assert caplog.text.count("trying again") == 1
    store.plan = _first(CLIENT_TRIES + 2, fault, "GET", "a.bin")
    assert storage.read_bytes(path) == content
    assert caplog.text.count("trying again") == 2


def test_a_slow_store_is_waited_for(store: FlakyStore):
    path = _at(store, "slow", "a.bin")
    store.plan = lambda method, path: "slow" if "slow/a.bin" in path else None
    storage.write_bytes(path, b"hello")
    assert storage.read_bytes(path) == b"hello"


def test_a_permanent_error_is_reported_with_the_path(store: FlakyStore):
    store.plan = lambda method, path: "busy"
    with pytest.raises(storage.StorageError, match=r"cannot reach 's3://bucket/a\.bin"):
        storage.read_bytes(_at(store, "a.bin"))


def test_a_full_store_is_an_error_at_once(store: FlakyStore, caplog: pytest.LogCaptureFixture):
    store.plan = lambda method, path: "full" if method == "PUT" else None
    with caplog.at_level(logging.WARNING), pytest.raises(storage.StorageError, match="QuotaExceeded"):
        storage.write_bytes(_at(store, "full.bin"), b"hello")
    assert "trying again" not in caplog.text
    store.plan = lambda method, path: None
    assert not storage.exists(_at(store, "full.bin"))


def test_what_is_not_there_is_not_waited_for(store: FlakyStore, caplog: pytest.LogCaptureFixture):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(_at(store, "nothing"))
    assert "trying again" not in caplog.text


def test_shards_are_read_although_the_store_refuses_now_and_then(store: FlakyStore, tiny_data: str):  # noqa: F811
    for file in Path(tiny_data).iterdir():
        storage.write_bytes(_at(store, "shards", file.name), file.read_bytes())
    draws = np.random.default_rng(0)
    store.plan = lambda method, path: "busy" if "shards" in path and draws.random() < 0.3 else None
    index = build_index(DataConfig(path=_at(store, "shards")))
    ours = read_groups(index, range(index.num_groups)).encoded
    assert ours == read_groups(build_index(DataConfig(path=tiny_data)), range(index.num_groups)).encoded
    assert any(fault == "busy" for _, _, fault in store.log)


def test_a_checkpoint_that_cannot_be_written_is_an_error_and_the_run_resumes_from_the_one_before(
    store: FlakyStore,
    tiny_config,  # noqa: F811
    tmp_path: Path,
):
    run_dir = _at(store, "run")
    config = tiny_config("simclr", "train.checkpoint_every=2", "train.keep_checkpoints=9")
    store.plan = lambda method, path: "cut" if method in ("PUT", "POST") and "step-00000004/state.pt" in path else None
    with pytest.raises(CheckpointNotWrittenError, match=r"step 4 could not be written to .*The last whole one is .*step-00000002"):
        run_here(config, run_dir)
    assert [step for step, _ in list_checkpoints(run_dir)] == [2, 4]
    assert [step for step, _ in whole_checkpoints(run_dir)] == [2]
    store.plan = lambda method, path: None
    resumed = run_here(config, run_dir)
    assert resumed.outcome.step == 6
    assert len(resumed.losses) == 4
    run_here(config, tmp_path)
    assert_same_checkpoints(latest_checkpoint(run_dir), latest_checkpoint(str(tmp_path)))
    assert [step for step, _ in whole_checkpoints(run_dir)] == [2, 4, 6]


def test_a_run_on_a_store_that_refuses_one_request_in_four_ends_as_on_a_disk(
    store: FlakyStore,
    tiny_config,  # noqa: F811
    tmp_path: Path,
):
    run_dir = _at(store, "often")
    config = tiny_config("simclr", "train.checkpoint_every=1", "train.keep_checkpoints=2")
    draws = np.random.default_rng(1)
    store.plan = lambda method, path: ("busy" if draws.random() < 0.5 else "cut") if draws.random() < 0.25 else None
    run_here(config, run_dir, LocalContext(stop_at_step=3))
    run_here(config, run_dir)
    store.plan = lambda method, path: None
    run_here(config, tmp_path)
    assert_same_checkpoints(latest_checkpoint(run_dir), latest_checkpoint(str(tmp_path)))
    assert [step for step, _ in list_checkpoints(run_dir)] == [5, 6]
