import pytest
import torch

from ray_sassl.backbones.resnet_cifar import BasicBlock, cifar_resnet


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)]
)
def test_parameters_are_as_many_as_in_table_6(name, millions):
    backbone, num_features = cifar_resnet(name)
    classifier = 10 * num_features + 10
    assert (sum(p.numel() for p in backbone.parameters()) + classifier) / 1e6 == pytest.approx(
        millions, abs=0.05 if millions > 1 else 0.005
    )


def test_maps_are_32_16_and_8_pixels_wide():
    backbone, _ = cifar_resnet("resnet20")
    sizes = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, 64)
    assert sizes == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3


def test_the_shortcut_has_no_parameters_and_fills_new_channels_with_zeros():
    block = BasicBlock(4, 8, stride=2)
    x = torch.randn(2, 4, 6, 6)
    shortcut = block._shortcut(x)
    assert torch.equal(shortcut[:, :4], x[:, :, ::2, ::2])
    assert shortcut[:, 4:].abs().max() == 0
    assert sum(p.numel() for p in block.parameters()) == 9 * (4 * 8 + 8 * 8) + 2 * (8 + 8)


def test_with_zero_initialized_residuals_a_block_starts_as_its_shortcut():
    backbone, _ = cifar_resnet("resnet20", zero_init_residual=True)
    block, x = backbone.blocks[1], torch.rand(2, 16, 8, 8)
    torch.testing.assert_close(block(x), x)


def test_channels_last_images_stay_so_through_the_network():
    backbone = cifar_resnet("resnet20")[0].to(memory_format=torch.channels_last)
    layouts = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _, __, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)))
    backbone(torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last))
    assert all(layouts)
