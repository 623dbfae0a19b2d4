import torch

from ray_sassl.nn.freezing import freezable


def test_the_weight_stays_the_same_to_the_bit_and_its_gradient_is_multiplied():
    weight = torch.randn(50, requires_grad=True)
    for trains in (0.0, 1.0):
        weight.grad = None
        same = freezable(weight, torch.tensor(trains))
        assert torch.equal(same, weight)
        (same * torch.arange(50)).sum().backward()
        assert torch.equal(weight.grad, trains * torch.arange(50.0))
