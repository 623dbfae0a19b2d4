"""TF32 for networks, whole float32 for losses."""

import torch

from ray_sassl.nn.precision import choose_kernels, full_float32

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def _state() -> tuple[bool, bool, str]:
    return torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def test_kernels_are_chosen_for_gpus_until_their_end_and_losses_keep_the_whole_float32():
    before = _state()
    end = choose_kernels(CUDA, benchmark=True, tf32=True)
    assert _state() == (True, True, "high")
    with full_float32(CUDA):
        assert _state() == (True, True, "highest")
    assert _state() == (True, True, "high")
    end()
    assert _state() == before
    end = choose_kernels(CUDA, benchmark=False, tf32=False)
    assert _state() == (False, False, "highest")
    end()
    assert _state() == before


def test_on_cpus_nothing_is_chosen():
    before = _state()
    choose_kernels(CPU, benchmark=not before[0], tf32=not before[1])
    with full_float32(CPU):
        assert _state() == before
