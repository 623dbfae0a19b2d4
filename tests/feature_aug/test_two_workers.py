"""One worker and two make the same features and remember the same."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from tests.together import run_together

SCRIPT = Path(__file__).with_name("two_workers.py")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks by variant, computed by two processes that talk over gloo."""
    folder = tmp_path_factory.mktemp("two_workers")
    outs = [folder / f"rank{rank}.pt" for rank in range(2)]
    commands = [[sys.executable, str(SCRIPT), str(folder / "store"), str(rank), str(outs[rank])] for rank in range(2)]
    run_together(commands)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.fixture(scope="module")
def one_worker():
    spec = importlib.util.spec_from_file_location("feature_aug_two_workers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_workers_equal_one(ranks, one_worker, config, request):
    expected = one_worker.steps_of(config)
    for results in ranks:
        found = results[request.node.callspec.id]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-12, msg=lambda text, key=key: f"{key}: {text}")
