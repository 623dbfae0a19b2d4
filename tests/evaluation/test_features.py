import numpy as np
import pytest
import torch
from torch import nn

from ray_sassl.evaluation.features import extract_features
from ray_sassl.process.errors import UsageError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class _MeanColor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert x.is_contiguous(memory_format=torch.channels_last)
        return self.dropout(x).mean((2, 3))


def _batches() -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (n, 5, 4, 3), dtype=np.uint8) for n in (3, 2)]
    images[0].setflags(write=False)
    return [(x, np.arange(len(x), dtype=np.int32)) for x in images]


def test_features_and_labels_come_in_the_order_of_the_batches():
    backbone = _MeanColor()
    result = extract_features(backbone, _batches(), MEAN, STD, "cpu")
    expected = np.concatenate([(images / 255 - 0.5) / 0.25 for images, _ in _batches()]).mean((1, 2))
    np.testing.assert_allclose(result.features, expected, atol=1e-5)
    assert result.features.dtype == np.float32
    assert result.labels.tolist() == [0, 1, 2, 0, 1]
    assert result.labels.dtype == np.int64


def test_each_module_gets_its_mode_back():
    backbone = _MeanColor()
    extract_features(backbone, _batches(), MEAN, STD, "cpu")
    assert backbone.training
    assert backbone.dropout.training
    assert not backbone.frozen.training


def test_no_images_is_an_error():
    with pytest.raises(UsageError, match="no images"):
        extract_features(_MeanColor(), [], MEAN, STD, "cpu")
