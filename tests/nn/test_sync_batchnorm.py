import pytest
import timm
import torch
from torch import nn

from ray_sassl.nn.ema import momentum_copy
from ray_sassl.nn.split_batchnorm import convert as convert_to_split
from ray_sassl.nn.sync_batchnorm import SyncBatchNorm, convert
from ray_sassl.process.errors import UsageError


def test_without_other_workers_it_is_plain_batch_normalization_to_the_bit():
    plain = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    synchronized = convert(momentum_copy(plain))
    x = torch.randn(6, 3, 4, 4)
    assert torch.equal(plain(x), synchronized(x))
    assert plain.state_dict().keys() == synchronized.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), synchronized.state_dict().values(), strict=True))


def test_conversion_keeps_frozen_layers_frozen_and_the_same_tensors():
    network = momentum_copy(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    weight = network[1].weight
    convert(network)
    assert isinstance(network[1], SyncBatchNorm)
    assert network[1].weight is weight
    assert not any(p.requires_grad for p in network.parameters())


def test_conversion_does_not_change_split_batch_normalization():
    split = convert_to_split(nn.Sequential(nn.BatchNorm2d(3)), 2)
    layer = split[0]
    assert convert(split)[0] is layer


def test_the_activation_in_timm_layers_is_kept():
    network = timm.create_model("efficientnet_lite0", pretrained=False, num_classes=0).eval()
    x = torch.randn(1, 3, 32, 32)
    expected = network(x)
    torch.testing.assert_close(convert(network)(x), expected)


def test_a_foreign_batch_normalization_is_refused():
    class Foreign(nn.BatchNorm2d):
        pass

    with pytest.raises(UsageError, match="Foreign cannot be synchronized"):
        convert(nn.Sequential(Foreign(3)))
