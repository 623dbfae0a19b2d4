import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug.interpolate import Config
from ray_sassl.feature_aug.partners import Partners
from ray_sassl.process.errors import UsageError

BATCH_SIZE, WIDTH = 6, 5


def _embeddings(seed: int = 0) -> Tensor:
    z = torch.randn(BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z * (1 + torch.arange(BATCH_SIZE)[:, None])


def _chosen(partners: Tensor, z: Tensor, others: Tensor) -> Tensor:
    """(K, B): which of the `others` (S, D) has the direction of the partner; its length is checked to be that of the embedding."""
    expected = F.normalize(others, dim=1) * z.norm(dim=1)[:, None, None]  # (B, S, D)
    distance = (partners[:, :, None] - expected).norm(dim=3)  # (K, B, S)
    assert distance.amin(2).max() < 1e-9
    return distance.argmin(2)


def _built(num_samples: int = 1, **fields) -> Partners:
    return Partners(Config(**fields), WIDTH, num_samples).double()


def test_random_partners_are_all_the_others_of_the_batch_alike_and_never_the_sample_itself():
    z = _embeddings()
    chosen = _chosen(_built(2000)(z, torch.Generator().manual_seed(0), None), z, z)  # (K, B)
    counts = F.one_hot(chosen, BATCH_SIZE).sum(0)  # (B, B)
    assert counts.diagonal().max() == 0
    is_other = ~torch.eye(BATCH_SIZE, dtype=torch.bool)
    assert (counts[is_other] - 400).abs().max() < 5 * (2000 * 0.2 * 0.8) ** 0.5


def test_nearest_partners_of_the_batch_are_the_others_of_largest_cosine():
    z = _embeddings()
    chosen = _chosen(_built(2, choice="nearest")(z, torch.Generator().manual_seed(0), None), z, z)
    for i in range(BATCH_SIZE):
        cosines = [float(z[i] @ z[j] / (z[i] @ z[i]).sqrt() / (z[j] @ z[j]).sqrt()) if j != i else -2.0 for j in range(BATCH_SIZE)]
        assert sorted(chosen[:, i].tolist()) == sorted(sorted(range(BATCH_SIZE), key=lambda j, c=cosines: -c[j])[:2])


def test_another_row_of_the_same_sample_is_no_nearest_partner():
    z = _embeddings()
    z[1] = 2 * z[0]
    partners = _built(choice="nearest")
    by_row, by_id = (partners(z, torch.Generator(), ids)[0, 0] for ids in (None, torch.tensor([7, 7, 2, 3, 4, 5])))
    torch.testing.assert_close(by_row, z[0], rtol=0, atol=1e-12)
    assert F.cosine_similarity(by_id, z[0], dim=0) < 0.99


def test_random_partners_of_the_support_set_are_all_of_it_alike():
    partners, z, earlier = _built(1200, source="support", support_size=BATCH_SIZE), _embeddings(), _embeddings(1)
    partners.remember(earlier, None)
    chosen = _chosen(partners(z, torch.Generator().manual_seed(0), None), z, earlier)
    counts = F.one_hot(chosen, BATCH_SIZE).sum(0)
    assert (counts - 200).abs().max() < 5 * (1200 / 6 * 5 / 6) ** 0.5


@pytest.mark.parametrize("exclude_own", [True, False])
def test_nearest_partners_of_the_support_set_leave_out_the_samples_own(exclude_own):
    partners = _built(source="support", choice="nearest", support_size=BATCH_SIZE, exclude_own=exclude_own)
    z, ids = _embeddings(), torch.arange(BATCH_SIZE)
    partners.remember(z, ids)
    is_own = _chosen(partners(z, torch.Generator(), ids), z, z)[0] == ids
    assert not is_own.any() if exclude_own else is_own.all()


def test_partners_are_drawn_from_the_top_k():
    partners, z = _built(1, choice="nearest", top_k=3), _embeddings()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.cat([_chosen(partners(z, generator, None), z, z) for _ in range(100)])
    assert all(len(set(chosen[:, i].tolist())) == 3 for i in range(BATCH_SIZE))


def test_partners_are_detached():
    assert not _built()(_embeddings().requires_grad_(), torch.Generator(), None).requires_grad


def test_only_a_support_set_is_state():
    assert not _built().state_dict()
    assert _built(source="support", support_size=7).state_dict()["support.queue.embeddings"].shape == (7, WIDTH)


@pytest.mark.parametrize(("fields", "wanted"), [({}, 1), ({"choice": "nearest", "top_k": 2}, 2)])
def test_a_batch_with_too_few_others_is_refused(fields, wanted):
    with pytest.raises(UsageError, match=f"needs {wanted} others in its batch and has {wanted - 1}"):
        _built(**fields)(_embeddings()[:wanted], torch.Generator(), None)


def test_more_neighbors_than_the_support_set_holds_are_refused():
    with pytest.raises(UsageError, match=r"9 neighbors .* of a support set of 8"):
        _built(source="support", choice="nearest", support_size=8, top_k=9)


def test_fewer_neighbors_than_features_are_refused():
    with pytest.raises(UsageError, match="top_k=1 neighbors are too few for num_samples=2"):
        _built(2, choice="nearest", top_k=1)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"top_k": 4}, "choice='nearest'"),
        ({"support_size": 64}, "source='support'"),
        ({"exclude_own": False}, "source='support' and choice='nearest'"),
        ({"exclude_own": False, "source": "support"}, "choice='nearest'"),
    ],
)
def test_an_option_without_effect_is_refused(fields, missing):
    with pytest.raises(ValidationError, match=f"no effect without {missing}"):
        Config(**fields)
