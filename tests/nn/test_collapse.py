import math

import pytest
import torch

from ray_sassl.nn.collapse import NewestEmbeddings, effective_rank, embedding_std


def test_embeddings_on_the_axes_both_ways_have_a_std_of_one():
    axes = torch.eye(6)
    assert embedding_std(torch.cat([axes, -axes])).item() == pytest.approx(1, rel=1e-6)


def test_the_std_does_not_depend_on_the_embeddings_lengths():
    z = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(embedding_std(7 * z), embedding_std(z))


def test_collapsed_embeddings_have_a_std_of_zero_and_a_rank_of_one():
    collapsed = torch.ones(16, 1) * torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    assert embedding_std(collapsed).item() == pytest.approx(0, abs=1e-6)
    assert effective_rank(collapsed).item() == pytest.approx(1, abs=1e-3)


def test_the_effective_rank_of_k_equal_directions_is_k():
    assert effective_rank(5 * torch.eye(12)[:7]).item() == pytest.approx(7, rel=1e-4)


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    singular = torch.tensor([4.0, 2.0, 1.0, 1.0])
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))[0]
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 2 * 0.125 * math.log(8)
    assert effective_rank(torch.diag(singular) @ rotation).item() == pytest.approx(math.exp(entropy), rel=1e-5)


def test_the_effective_rank_of_a_diverged_network_is_not_a_number():
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_the_effective_rank_is_that_of_the_singular_values(shape):
    z = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 1, shape[1])
    p = torch.linalg.svdvals(z.double())
    p = p / p.sum()
    assert effective_rank(z).item() == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-4)


def test_embeddings_are_kept_over_steps_until_there_are_enough_newer_ones():
    newest = NewestEmbeddings(num=10)
    for step in range(6):
        newest.add(torch.full((4, 2), float(step)))
    assert newest.gathered()[:, 0].tolist() == [3.0] * 4 + [4.0] * 4 + [5.0] * 4


def test_the_rank_of_many_small_batches_is_that_of_all_of_them():
    z = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    newest = NewestEmbeddings(num=64)
    for part in z.split(8):
        newest.add(part)
    assert torch.equal(newest.gathered(), z)
    assert effective_rank(newest.gathered()) > 3 * effective_rank(z[:8])
