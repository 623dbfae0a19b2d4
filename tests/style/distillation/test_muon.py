from __future__ import annotations

import pytest
import torch
from torch import nn

from ray_sassl.style.distillation.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12)])
def test_singular_values_become_about_one_and_singular_vectors_stay(shape):
    torch.manual_seed(0)
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    result = orthogonalized((u * s) @ v)
    mapped = u.mT @ result @ v.mT
    assert 0.6 < mapped.diagonal().min() < mapped.diagonal().max() < 1.3
    assert (mapped - mapped.diagonal().diag()).abs().max() < 1e-4


def test_the_size_of_the_gradient_does_not_matter():
    gradient = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalized(1000 * gradient), orthogonalized(gradient), atol=1e-4, rtol=0)


def test_a_convolution_moves_as_its_matrix_does():
    torch.manual_seed(0)
    conv = nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = nn.Parameter(conv.detach().flatten(1).clone())
    conv.grad = torch.randn(4, 3, 2, 2)
    matrix.grad = conv.grad.flatten(1).clone()
    Muon([conv], 0.1, weight_decay=0.5).step()
    Muon([matrix], 0.1, weight_decay=0.5).step()
    torch.testing.assert_close(conv.flatten(1), matrix)


def test_least_squares_are_found():
    torch.manual_seed(0)
    wanted, weight = torch.randn(8, 8), nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], 0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        weight.grad = weight.detach() - wanted
        optimizer.step()
    assert (weight - wanted).square().mean() < 0.01 * wanted.square().mean()
