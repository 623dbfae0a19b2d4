"""What the whole suite shares: where the test data is, a home of its own, one thread for each process, and one Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # commands that tests start would inherit that it is ignored, as below `nohup`

_WITH_RAY = pytest.StashKey[set[Path]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Modules with Ray first: they take longest, and where two modules run at once none of them should be left for the end."""
    with_ray = config.stash[_WITH_RAY] = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in with_ray)


@pytest.fixture(scope="module")
def ray_cluster(_isolated_home: None) -> Iterator[None]:
    """A Ray with two CPUs, which most modules share; see "Test budget" in CONTRIBUTING.md."""
    from tests.orchestrate.shared_cluster import forget_weights, start

    start()
    yield
    forget_weights()


@pytest.fixture
def forking_ray(_isolated_home: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray that the test starts, in a command of its own or here after `shared_cluster.stop`, forks its workers too."""
    from tests.orchestrate.shared_cluster import forking

    for name, value in forking().items():
        monkeypatch.setenv(name, value)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the Ray that modules share once the next module does not use it."""
    if item.path in item.config.stash[_WITH_RAY] and (nextitem is None or nextitem.path not in item.config.stash[_WITH_RAY]):
        from tests.orchestrate.shared_cluster import stop_all

        stop_all()


def _shared() -> Path:
    return Path(os.environ.get("RAY_SASSL_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real test data (CIFAR-10, an ImageNet sample, odd JPEGs); see CONTRIBUTING.md."""
    folder = _shared()
    if not (folder / "data").is_dir():
        pytest.skip(f"the shared test data is not at {folder}; set RAY_SASSL_SHARED to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _isolated_home(tmp_path_factory: pytest.TempPathFactory):
    """Caches, tokens and settings of the tests stay out of the user's home."""
    home = tmp_path_factory.mktemp("home")
    names = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "RAY_SASSL_CACHE": str(home / "cache"),
        "MPLCONFIGDIR": str(home / "mpl"),
        # Ray gives its workers the lowest priority, and beside other work on the machine the tests would wait for minutes.
        "RAY_worker_niceness": "0",
    }
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def weights_cache(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with all published weights, to be set as RAY_SASSL_CACHE; the tests' own cache has none."""
    from ray_sassl.style.stylizers import all_published_weights
    from ray_sassl.style.weights import add_weights

    files = sorted((shared_dir / "stylizer").glob("*.tflite"))
    if not files:
        pytest.skip(f"the published stylizer's files are not in {shared_dir / 'stylizer'}")
    folder = tmp_path_factory.mktemp("weights-cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_SASSL_CACHE", str(folder))
        add_weights(all_published_weights().values(), files)
    return folder
