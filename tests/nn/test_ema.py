import pytest
import torch
from torch import nn

from ray_sassl.nn.ema import cosine_momentum, momentum_copy, update_momentum_copy


def test_a_momentum_copy_takes_no_gradients_and_shares_no_memory():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    copy = momentum_copy(network)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert {p.data_ptr() for p in copy.parameters()}.isdisjoint(p.data_ptr() for p in network.parameters())


def test_an_update_is_the_weighted_mean_of_copy_and_network():
    network = nn.Linear(5, 4).double()
    copy = momentum_copy(nn.Linear(5, 4).double())
    expected = 0.9 * copy.weight + 0.1 * network.weight
    update_momentum_copy(copy, network, 0.9)
    torch.testing.assert_close(copy.weight, expected.detach(), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("momentum", "moves"), [(1.0, False), (0.0, True)])
def test_momentum_one_keeps_the_copy_and_zero_takes_the_network(momentum, moves):
    network, copy = nn.Linear(5, 4), momentum_copy(nn.Linear(5, 4))
    before = copy.weight.clone()
    update_momentum_copy(copy, network, momentum)
    assert torch.equal(copy.weight, network.weight.detach() if moves else before)


def test_an_update_does_not_change_batch_statistics():
    network = nn.BatchNorm1d(2)
    copy = momentum_copy(network)
    network(torch.randn(8, 2) + 5)
    update_momentum_copy(copy, network, 0.0)
    assert copy.running_mean is not None
    assert copy.running_mean.abs().max() == 0


def test_the_cosine_rises_from_the_base_to_one_through_its_middle():
    assert cosine_momentum(0.996, 0.0) == pytest.approx(0.996, abs=1e-15)
    assert cosine_momentum(0.996, 0.5) == pytest.approx(0.998, abs=1e-15)
    assert cosine_momentum(0.996, 1.0) == 1.0
    values = [cosine_momentum(0.9, i / 100) for i in range(101)]
    assert values == sorted(values)
