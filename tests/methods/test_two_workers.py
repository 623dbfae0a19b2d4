"""One worker and two give the same run: losses, gradients, weights, queue."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.together import run_together

SCRIPT = Path(__file__).with_name("two_workers.py")


def _load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_workers", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


one_worker = _load(SCRIPT)
CONFIGS = one_worker.configs()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both ranks, computed by two processes that talk over gloo."""
    folder = tmp_path_factory.mktemp("two_workers")
    outs = [folder / f"rank{rank}.pt" for rank in range(2)]
    commands = [[sys.executable, str(SCRIPT), str(folder / "store"), str(rank), str(outs[rank])] for rank in range(2)]
    run_together(commands)
    return [torch.load(out, weights_only=True) for out in outs]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_method_on_two_workers_equals_it_on_one(ranks, name):
    expected = one_worker.steps_of(CONFIGS[name])
    for results in ranks:
        assert results[name].keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(results[name][key], value, rtol=1e-8, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")


def test_synchronized_batch_normalization_equals_one_process(ranks):
    expected = one_worker.batch_norm()
    first, second = (results["batch_norm"] for results in ranks)
    for key in ("y", "x_grad"):
        torch.testing.assert_close(torch.cat([first[key], second[key]]), expected[key], rtol=0, atol=1e-12)
    for key in ("weight_grad", "bias_grad"):
        torch.testing.assert_close(first[key] + second[key], expected[key], rtol=0, atol=1e-12)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(first[key], expected[key], rtol=0, atol=1e-12)
        assert torch.equal(first[key], second[key])


def test_gathered_rows_stand_in_the_order_of_ranks_and_take_the_sum_of_gradients(ranks):
    x = torch.arange(8.0).view(4, 2)
    for rank, results in enumerate(ranks):
        assert torch.equal(results["gather"]["everyone"], x)
        assert torch.equal(results["gather"]["plain"], x)
        assert torch.equal(results["gather"]["gradient"], (1 + 2) * 2 * x[2 * rank : 2 * rank + 2])


@pytest.mark.parametrize("sends_bytes", [True, False])
def test_four_workers_shuffle_keys_as_if_all_had_all_images_and_send_each_row_once(tmp_path, sends_bytes):
    script = Path(__file__).with_name("four_workers.py")
    commands = [[sys.executable, str(script), str(tmp_path), str(rank), *(["bytes"] if sends_bytes else [])] for rank in range(4)]
    processes = [subprocess.Popen(command) for command in commands]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * 4
    finally:
        for process in processes:
            process.kill()
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    for result in results:
        assert torch.equal(result["keys"], result["expected"])
        assert torch.equal(result["keys"], results[0]["keys"])
    image_bytes = 3 * 16 * 16 * (1 if sends_bytes else 4)
    assert sum(result["sent_bytes"] for result in results) == image_bytes * results[0]["num_moved"]
    assert results[0]["num_moved"] <= 4 * 6


def test_shuffled_keys_come_back_in_order_and_fill_every_queue_equally(ranks):
    first, second = (results["shuffled_keys"] for results in ranks)
    torch.testing.assert_close(first["keys"], first["plain"], rtol=0, atol=1e-12)
    assert torch.equal(first["keys"], second["keys"])
    assert torch.equal(first["queue"], second["queue"])
    assert torch.isfinite(first["loss"])


def test_a_sum_over_workers_takes_the_sum_of_gradients(ranks):
    for rank, results in enumerate(ranks):
        x = torch.tensor([1.0, 2.0]) + 10 * rank
        total = torch.tensor([12.0, 14.0])
        assert torch.equal(results["sum"]["x"], x)
        assert torch.equal(results["sum"]["total"], total)
        assert torch.equal(results["sum"]["gradient"], (1 + 2) * 2 * total)
