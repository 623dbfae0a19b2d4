from __future__ import annotations

import numpy as np
import pytest

from ray_sassl.style.networks.tflite import BadTfliteError, read_constants


@pytest.fixture(scope="module")
def predictor(shared_dir) -> bytes:
    return (shared_dir / "stylizer" / "style_predict_quantized_256.tflite").read_bytes()


def test_integers_are_dequantized_per_channel(predictor):
    kernel = read_constants(predictor)["MobilenetV2/Conv/weights"]
    assert (kernel.shape, kernel.dtype) == ((32, 3, 3, 3), np.float32)
    # Symmetric int8: in every output channel the largest weight is 127 steps, and all are whole steps.
    for channel in kernel:
        step = np.abs(channel).max() / 127
        np.testing.assert_allclose(channel / step, np.round(channel / step), atol=1e-3)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 64])
def test_what_is_no_model_is_refused(content):
    with pytest.raises(BadTfliteError, match="not a TensorFlow Lite file"):
        read_constants(content)


@pytest.mark.parametrize("cut", [100, 5_000, 2_000_000])
def test_a_cut_model_is_refused(predictor, cut):
    with pytest.raises(BadTfliteError, match="truncated"):
        read_constants(predictor[:cut])
