import pytest
import torch
from torch import nn

from ray_sassl.nn.split_batchnorm import SplitBatchNorm2d, convert
from ray_sassl.process.errors import UsageError


def test_each_group_is_normalized_separately():
    x = torch.randn(12, 3, 4, 4, dtype=torch.float64)
    split = convert(nn.BatchNorm2d(3).double(), 4)
    alone = torch.cat([nn.BatchNorm2d(3).double()(group) for group in x.chunk(4)])
    torch.testing.assert_close(split(x), alone, rtol=0, atol=1e-12)


def test_running_statistics_are_the_mean_over_the_groups():
    x = torch.randn(12, 3, 4, 4)
    split = convert(nn.BatchNorm2d(3), 3)
    split(x)
    groups = [nn.BatchNorm2d(3) for _ in range(3)]
    for bn, group in zip(groups, x.chunk(3), strict=True):
        bn(group)
    torch.testing.assert_close(split.running_mean, torch.stack([bn.running_mean for bn in groups]).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack([bn.running_var for bn in groups]).mean(0))


def test_evaluation_uses_the_running_statistics_like_plain_batch_normalization():
    plain = nn.BatchNorm2d(3).eval()
    x = torch.randn(5, 3, 4, 4)
    expected = plain(x)
    assert torch.equal(convert(plain, 2)(x), expected)


def test_a_batch_smaller_than_the_number_of_groups_is_refused():
    split = convert(nn.Sequential(nn.BatchNorm2d(3)), 8)
    assert isinstance(split[0], SplitBatchNorm2d)
    with pytest.raises(UsageError, match="4 images a worker cannot be split into 8"):
        split(torch.randn(4, 3, 2, 2))
