import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug import compose, identity, mask, nearest, noise
from ray_sassl.process.errors import UsageError

BATCH_SIZE, WIDTH = 6, 16


def _embeddings(seed: int = 0) -> Tensor:
    z = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * (1 + torch.arange(BATCH_SIZE)[:, None])


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _built(*parts, num_samples: int = 3) -> compose.Compose:
    return compose.Config(augmentations=parts).build(WIDTH, num_samples).double()


def test_parts_are_named_or_given():
    assert compose.Config(augmentations=["mask", {"name": "noise", "noise_std": 0.1}]) == compose.Config(
        augmentations=(mask.Config(), noise.Config(noise_std=0.1))
    )


def test_each_feature_of_the_first_part_passes_through_the_further_ones():
    generator, z = _seeded(), _embeddings()
    expected = mask.Config().build(WIDTH, 3)(z, generator)
    expected = torch.cat([noise.Config().build(WIDTH, 1)(of_sample, generator) for of_sample in expected])
    assert torch.equal(_built("mask", "noise")(z, _seeded()), expected)


def test_a_chain_of_one_is_that_one_and_an_identity_in_it_changes_nothing():
    plain = mask.Config().build(WIDTH, 3)(_embeddings(), _seeded())
    for parts in (("mask",), ("mask", "identity")):
        assert torch.equal(_built(*parts)(_embeddings(), _seeded()), plain)


def test_chains_stand_in_chains():
    inner = compose.Config(augmentations=("mask", "noise"))
    assert torch.equal(
        _built(inner, num_samples=1)(_embeddings(), _seeded()), _built("mask", "noise", num_samples=1)(_embeddings(), _seeded())
    )


def test_nearest_in_first_place_gives_different_neighbors():
    chain = _built(nearest.Config(support_size=BATCH_SIZE), "identity")
    chain.remember(_embeddings(1))
    features = chain(_embeddings(), _seeded())
    for i in range(BATCH_SIZE):
        assert len(features[:, i].unique(dim=0)) == 3


def test_nearest_behind_another_part_gives_the_original_embedding_nearest_to_each_feature():
    chain = _built(mask.Config(mask_prob=0.5), nearest.Config(support_size=BATCH_SIZE))
    earlier = F.normalize(_embeddings(1), dim=1)
    chain.remember(_embeddings(1))
    masked = mask.Config(mask_prob=0.5).build(WIDTH, 3)(_embeddings(), _seeded())
    expected = earlier[(masked @ earlier.T).argmax(2)]
    torch.testing.assert_close(chain(_embeddings(), _seeded()), expected, rtol=0, atol=1e-12)


def test_the_gradient_stops_where_a_part_stops_it():
    assert _built("mask", "noise").passes_gradient
    assert not _built("mask", nearest.Config(support_size=9), "noise").passes_gradient


def test_a_chain_has_a_strength_where_all_its_parts_have_one():
    assert compose.Config(augmentations=("mask", "identity")).weakest() == compose.Config(
        augmentations=(mask.Config(mask_prob=0), identity.Config())
    )
    assert compose.Config(augmentations=("mask", "nearest")).weakest() is None


def test_only_the_first_part_is_asked_for_several_features():
    parts = (nearest.Config(support_size=9, top_k=2), nearest.Config(support_size=9, top_k=1))
    _built(*parts, num_samples=2)
    with pytest.raises(UsageError, match="top_k=1 neighbors are too few for num_samples=2"):
        _built(*reversed(parts), num_samples=2)


def test_an_empty_chain_and_an_unknown_part_are_refused():
    with pytest.raises(ValidationError, match="at least 1 item"):
        compose.Config(augmentations=())
    with pytest.raises(ValidationError, match="did you mean 'mask'"):
        compose.Config(augmentations=("mas",))
