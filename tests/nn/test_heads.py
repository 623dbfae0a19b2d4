import torch
from torch import nn

from ray_sassl.nn.heads import mlp_head


def test_a_linear_layer_before_batch_normalization_has_no_bias():
    head = mlp_head(4, 8, 3, num_layers=3, last_bn=True)
    assert [layer.bias is None for layer in head if isinstance(layer, nn.Linear)] == [True, True, True]


def test_a_head_without_batch_normalization_has_biases_and_a_linear_end():
    head = mlp_head(4, 8, 3, num_layers=2, hidden_bn=False)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(layer.bias is not None for layer in head if isinstance(layer, nn.Linear))


def test_one_layer_is_a_linear_map_of_the_given_widths():
    head = mlp_head(4, 8, 3, num_layers=1, last_bias=False)
    assert [tuple(p.shape) for p in head.parameters()] == [(3, 4)]
    assert head(torch.zeros(2, 4)).abs().max() == 0


def test_the_last_batch_normalization_may_be_without_scale_and_shift():
    head = mlp_head(4, 8, 3, num_layers=2, last_bn=True, last_bn_affine=False)
    assert [layer.affine for layer in head if isinstance(layer, nn.BatchNorm1d)] == [True, False]
    torch.testing.assert_close(head(torch.randn(16, 4)).mean(0), torch.zeros(3), rtol=0, atol=1e-6)
