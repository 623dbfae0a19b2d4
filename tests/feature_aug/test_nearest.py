import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug.nearest import Config
from ray_sassl.process.errors import UsageError

BATCH_SIZE, WIDTH = 6, 5


def _embeddings(seed: int, count: int = BATCH_SIZE) -> Tensor:
    z = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * (1 + torch.arange(count)[:, None])


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _slow_neighbors(query: Tensor, earlier: list[tuple[Tensor, int]], own: int | None) -> list[Tensor]:
    """The directions of the earlier embeddings, the nearest by cosine first, without those of the sample `own`."""
    others = [z / z.square().sum().sqrt() for z, sample in earlier if sample != own]
    return sorted(others, key=lambda v: -float((v * query).sum() / query.square().sum().sqrt()))


def test_the_feature_is_the_direction_of_the_nearest_earlier_embedding_of_another_sample():
    augmentation = Config(support_size=12).build(WIDTH, 1).double()
    earlier = []
    for step in range(4):
        z, ids = _embeddings(step), (torch.arange(BATCH_SIZE) + 2 * step) % 9
        if len(earlier) >= 12:
            features = augmentation(z, _seeded(), ids)[0]
            for feature, query, own in zip(features, z, ids.tolist(), strict=True):
                torch.testing.assert_close(feature, _slow_neighbors(query, earlier[-12:], own)[0], rtol=0, atol=1e-12)
        augmentation.remember(z, ids)
        earlier += zip(z, ids.tolist(), strict=True)


def test_several_features_are_different_ones_of_the_top_k_each_as_likely_as_any():
    augmentation = Config(support_size=BATCH_SIZE, top_k=4).build(WIDTH, 2).double()
    augmentation.remember(_embeddings(0))
    query = _embeddings(1)[:1]
    neighbors = torch.stack(_slow_neighbors(query[0], [(z, -1) for z in _embeddings(0)], None)[:4])
    counts, generator = torch.zeros(2, 4), _seeded()
    for _ in range(400):
        features = augmentation(query, generator)[:, 0]
        chosen = (features[:, None] - neighbors).abs().amax(2).argmin(1)
        torch.testing.assert_close(features, neighbors[chosen], rtol=0, atol=1e-12)
        assert chosen[0] != chosen[1]
        counts[[0, 1], chosen] += 1
    assert (counts - 100).abs().max() < 5 * (400 * 0.25 * 0.75) ** 0.5


def test_without_top_k_as_many_features_are_as_many_nearest():
    augmentation = Config(support_size=BATCH_SIZE).build(WIDTH, 3).double()
    augmentation.remember(_embeddings(0))
    query = _embeddings(1)[:1]
    expected = _slow_neighbors(query[0], [(z, -1) for z in _embeddings(0)], None)[:3]
    features = augmentation(query, _seeded())[:, 0]
    distance = (features[:, None] - torch.stack(expected)).abs().amax(2)
    assert sorted(distance.argmin(1).tolist()) == [0, 1, 2]
    assert distance.amin(1).max() < 1e-12


@pytest.mark.parametrize("exclude_own", [True, False])
def test_a_samples_own_earlier_embedding_is_a_neighbor_only_if_that_is_configured(exclude_own):
    augmentation = Config(support_size=BATCH_SIZE, exclude_own=exclude_own).build(WIDTH, 1).double()
    z, ids = _embeddings(0), torch.arange(BATCH_SIZE)
    augmentation.remember(z, ids)
    is_own = ((augmentation(z, _seeded(), ids)[0] - F.normalize(z, dim=1)).abs() < 1e-12).all(1)
    assert not is_own.any() if exclude_own else is_own.all()


def test_embeddings_are_searched_before_they_are_remembered():
    augmentation = Config(support_size=BATCH_SIZE, exclude_own=False).build(WIDTH, 1).double()
    z = _embeddings(0)
    before = augmentation(z, _seeded())
    assert not torch.isclose(before[0], F.normalize(z, dim=1)).all(1).any()
    augmentation.remember(z)
    torch.testing.assert_close(augmentation(z, _seeded())[0], F.normalize(z, dim=1), rtol=0, atol=1e-12)


def test_the_loss_of_its_features_is_nnclrs():
    """NNCLR, section 3.2: -log exp(nn(z_i) . z_i+ / t) / sum_k exp(nn(z_i) . z_k+ / t), in which all vectors are normalized beforehand."""
    augmentation = Config(support_size=20, exclude_own=False).build(WIDTH, 1).double()
    support, z, positives, temperature = _embeddings(0, 20), _embeddings(1), _embeddings(2), 0.1
    augmentation.remember(support)
    features = augmentation(z, _seeded())[0]
    logits = F.normalize(features, dim=1) @ F.normalize(positives, dim=1).T / temperature
    loss = F.cross_entropy(logits, torch.arange(BATCH_SIZE))
    expected = 0.0
    unit_support, unit_z, unit_positives = (x / x.square().sum(1, keepdim=True).sqrt() for x in (support, z, positives))
    for i in range(BATCH_SIZE):
        neighbor = min(unit_support, key=lambda q, i=i: float((unit_z[i] - q).square().sum()))
        terms = [torch.exp((neighbor * p).sum() / temperature) for p in unit_positives]
        expected -= torch.log(terms[i] / sum(terms)) / BATCH_SIZE
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)


def test_it_starts_with_unit_vectors_that_belong_to_no_sample():
    features = Config(support_size=50).build(WIDTH, 4)(_embeddings(0), _seeded(), torch.arange(BATCH_SIZE))
    torch.testing.assert_close(features.norm(dim=2), torch.ones(4, BATCH_SIZE).double(), rtol=0, atol=1e-6)


def test_features_are_constants_to_the_gradient():
    assert not Config(support_size=50).build(WIDTH, 2)(_embeddings(0).requires_grad_(), _seeded()).requires_grad


def test_fewer_neighbors_than_features_are_refused():
    with pytest.raises(UsageError, match=r"top_k=2 neighbors are too few for num_samples=3.*set top_k=3 or more"):
        Config(top_k=2).build(WIDTH, 3)


@pytest.mark.parametrize(("top_k", "num_samples"), [(5, 1), (0, 5)])
def test_more_neighbors_than_the_support_set_holds_are_refused(top_k, num_samples):
    with pytest.raises(UsageError, match=r"5 neighbors .* of a support set of 4; set support_size=5 or more"):
        Config(support_size=4, top_k=top_k).build(WIDTH, num_samples)
