import pytest
import torch
from pydantic import ValidationError

from ray_sassl.feature_aug.mask import Config

BATCH_SIZE, WIDTH = 64, 256


def _embeddings() -> torch.Tensor:
    return torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("mask_prob", [0.1, 0.5, 0.9])
def test_the_share_of_zeros_is_the_masks_probability_and_the_rest_is_as_it_was(mask_prob):
    z = _embeddings()
    features = Config(mask_prob=mask_prob).build(WIDTH, 4)(z, torch.Generator().manual_seed(1))
    is_zero = features == 0
    assert torch.equal(features, torch.where(is_zero, 0.0, z))
    num_draws = features.numel()
    spread = (mask_prob * (1 - mask_prob) / num_draws) ** 0.5
    assert abs(is_zero.double().mean().item() - mask_prob) < 4 * spread


def test_dimensions_are_dropped_independently_in_each_sample_and_feature():
    is_zero = (Config(mask_prob=0.5).build(WIDTH, 2)(_embeddings(), torch.Generator().manual_seed(1)) == 0).double() - 0.5
    flat = is_zero.flatten(0, 1)  # (2B, D)
    correlation = flat @ flat.T / (0.25 * WIDTH)
    off_diagonal = correlation - torch.diag(correlation.diagonal())
    assert off_diagonal.abs().max() < 6 / WIDTH**0.5


def test_rescaling_divides_what_stays_so_that_the_expected_feature_is_the_embedding():
    z = _embeddings()
    plain = Config(mask_prob=0.25).build(WIDTH, 800)(z[:2], torch.Generator().manual_seed(1))
    rescaled = Config(mask_prob=0.25, rescale=True).build(WIDTH, 800)(z[:2], torch.Generator().manual_seed(1))
    torch.testing.assert_close(rescaled, plain / 0.75, rtol=1e-12, atol=0)
    standard_error = z[:2].abs() * (0.25 / 0.75 / 800) ** 0.5
    assert ((rescaled.mean(0) - z[:2]).abs() < 5 * standard_error).all()


def test_the_similarity_to_the_original_is_the_root_of_what_stays():
    z = _embeddings()
    features = Config(mask_prob=0.36).build(WIDTH, 8)(z, torch.Generator().manual_seed(1))
    similarity = torch.nn.functional.cosine_similarity(features, z[None], dim=2)
    torch.testing.assert_close(similarity.mean(), torch.tensor(0.8, dtype=torch.float64), rtol=0, atol=0.01)


def test_the_gradient_passes_where_nothing_was_masked():
    z = _embeddings().requires_grad_()
    features = Config(mask_prob=0.5, rescale=True).build(WIDTH, 3)(z, torch.Generator().manual_seed(1))
    features.sum().backward()
    torch.testing.assert_close(z.grad, 2 * (features.detach() != 0).sum(0).double(), rtol=0, atol=0)


@pytest.mark.parametrize("mask_prob", [-0.1, 1.0])
def test_a_probability_that_leaves_nothing_is_refused(mask_prob):
    with pytest.raises(ValidationError, match="mask_prob"):
        Config(mask_prob=mask_prob)
