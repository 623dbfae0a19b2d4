import torch
from torch import nn

from ray_sassl.nn.multi_crop import encode_by_size


class Noting(nn.Module):
    """Means over pixels; it notes the shapes of what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return x.mean((2, 3))


def test_views_of_one_size_pass_together_and_come_back_in_their_order():
    network = Noting()
    views = [torch.randn(4, 3, size, size) for size in (8, 8, 5, 5, 5)]
    encoded = encode_by_size(network, views)
    assert network.shapes == [(8, 3, 8, 8), (12, 3, 5, 5)]
    torch.testing.assert_close(encoded, torch.cat([view.mean((2, 3)) for view in views]))


def test_two_views_pass_once_and_keep_their_memory_format():
    formats = []
    network = nn.Sequential(nn.Identity(), Noting())
    network[0].register_forward_hook(lambda module, args, output: formats.append(output.is_contiguous(memory_format=torch.channels_last)))
    views = [torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    encode_by_size(network, views)
    assert network[1].shapes == [(8, 3, 8, 8)]
    assert formats == [True]
