"""What every feature augmentation must do, run over all that are found."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation
from ray_sassl.plugins import load_plugin, plugin_names

PACKAGE = "ray_sassl.feature_aug"
NUM_SAMPLES, BATCH_SIZE, WIDTH = 3, 8, 16
IDS = torch.arange(BATCH_SIZE)


def _embeddings(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, D) of lengths that differ, around a common center."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(BATCH_SIZE, WIDTH, generator=generator, dtype=torch.float64) + 0.5
    return (z * (1 + torch.arange(BATCH_SIZE)[:, None])).to(dtype)


def _built(config: FeatureAugConfig, seed: int = 0) -> FeatureAugmentation:
    """One that remembers a batch."""
    torch.manual_seed(seed)
    augmentation = config.build(WIDTH, NUM_SAMPLES)
    augmentation.remember(_embeddings(seed=100), IDS)
    return augmentation


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_features_have_their_shape_and_the_embeddings_dtype(config, dtype):
    augmentation = _built(config)
    assert augmentation.num_samples == NUM_SAMPLES
    features = augmentation(_embeddings(dtype=dtype), _seeded(), IDS)
    assert features.shape == (NUM_SAMPLES, BATCH_SIZE, WIDTH)
    assert features.dtype == dtype
    assert torch.isfinite(features).all()


def test_one_sample_and_no_ids_are_enough(config):
    augmentation = config.build(WIDTH, 1)
    augmentation.remember(_embeddings(1))
    assert augmentation(_embeddings(), _seeded()).shape == (1, BATCH_SIZE, WIDTH)


def test_at_strength_zero_every_feature_is_the_embedding_to_the_bit(config):
    weakest = config.weakest()
    if weakest is None:
        pytest.skip("has no strength")
    assert type(weakest) is type(config)
    assert type(config)(**weakest.model_dump(mode="json")) == weakest
    z = _embeddings()
    features = _built(weakest)(z, _seeded(), IDS)
    assert torch.equal(_bits(features), _bits(z.repeat(NUM_SAMPLES, 1, 1)))


def test_above_strength_zero_the_features_of_a_sample_differ_from_it_and_from_each_other(config):
    features = _built(config)(_embeddings(), _seeded(), IDS)
    is_original = (features == _embeddings()).all(2).double().mean()  # a weak draw may leave one as it is
    is_like_first = (features[1:] == features[0]).all(2).double().mean()
    if config.weakest() == config:
        assert is_original == is_like_first == 1
    else:
        assert max(is_original, is_like_first) < 0.25


def test_the_generator_alone_decides(config):
    augmentation, z = _built(config), _embeddings()
    torch.manual_seed(1)
    global_state = torch.get_rng_state()
    first = augmentation(z, _seeded(5), IDS)
    assert torch.equal(torch.get_rng_state(), global_state)
    torch.manual_seed(2)
    assert torch.equal(augmentation(z, _seeded(5), IDS), first)
    assert config.weakest() == config or not torch.equal(augmentation(z, _seeded(6), IDS), first)


def test_a_forward_writes_neither_state_nor_inputs(config):
    augmentation, z = _built(config), _embeddings()
    before = {name: value.clone() for name, value in augmentation.state_dict().items()}
    augmentation(z, _seeded(), IDS)
    assert torch.equal(z, _embeddings())
    assert all(torch.equal(value, before[name]) for name, value in augmentation.state_dict().items())


def test_features_do_not_change_when_later_embeddings_are_remembered(config):
    augmentation = _built(config)
    features = augmentation(_embeddings(), _seeded(), IDS)
    before = features.clone()
    for step in range(3):
        augmentation.remember(_embeddings(step), IDS)
    assert torch.equal(features, before)


def test_gradients_reach_the_samples_own_embedding_or_none(config):
    augmentation = _built(config).double()
    jacobian = torch.autograd.functional.jacobian(lambda z: augmentation(z, _seeded(), IDS), _embeddings(dtype=torch.float64))
    by_pair = jacobian.abs().amax(dim=(2, 4))  # (K, B, B): of a feature toward an embedding
    is_own = torch.eye(BATCH_SIZE, dtype=torch.bool)
    assert by_pair[:, ~is_own].max() == 0
    assert (by_pair[:, is_own] > 0).all() if augmentation.passes_gradient else by_pair.max() == 0


def test_in_eval_mode_the_embeddings_come_back_with_their_gradient_and_nothing_is_drawn(config):
    augmentation, z, generator = _built(config).eval(), _embeddings().requires_grad_(), _seeded()
    features = augmentation(z, generator, IDS)
    assert torch.equal(_bits(features.detach()), _bits(z.detach().repeat(NUM_SAMPLES, 1, 1)))
    assert torch.equal(generator.get_state(), _seeded().get_state())
    features.sum().backward()
    assert torch.equal(z.grad, torch.full_like(z, NUM_SAMPLES))  # pyright: ignore[reportArgumentType]


def test_a_rebuilt_augmentation_continues_bit_identically_from_the_state_dict(config):
    augmentation = _built(config)
    resumed = _built(config, seed=1)
    resumed.load_state_dict(augmentation.state_dict())
    for step in range(3):
        z = _embeddings(step)
        assert torch.equal(augmentation(z, _seeded(step), IDS), resumed(z, _seeded(step), IDS))
        for one in (augmentation, resumed):
            one.remember(z, IDS)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in augmentation.state_dict().items())


def test_a_length_common_to_all_embeddings_changes_no_direction(config):
    augmentation, z = _built(config).double(), _embeddings(dtype=torch.float64)
    longer, features = augmentation(8 * z, _seeded(), IDS), augmentation(z, _seeded(), IDS)
    torch.testing.assert_close(F.normalize(longer, dim=2), F.normalize(features, dim=2), rtol=0, atol=1e-12)


def test_autocast_changes_nothing(config):
    augmentation, z = _built(config), _embeddings()
    with torch.autocast("cpu", torch.bfloat16):
        features = augmentation(z, _seeded(), IDS)
    assert torch.equal(features, augmentation(z, _seeded(), IDS))


def test_a_config_comes_back_from_its_dump(config):
    assert type(config)(**config.model_dump(mode="json")) == config


def test_exactly_one_augmentation_is_the_identity():
    configs = [load_plugin(PACKAGE, name).Config for name in plugin_names(PACKAGE)]
    assert sum(config.is_identity for config in configs) == 1
