"""Constant tensors of a TensorFlow Lite file, as float32 arrays; the file is parsed as data, and nothing in it is executed."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ray_sassl.process.errors import UsageError


class BadTfliteError(UsageError):
    """The bytes are not a TensorFlow Lite file, or the file is truncated or has tensors of an unknown type."""


def read_constants(content: bytes) -> dict[str, np.ndarray]:
    """The constants of the first subgraph by their names, in the shapes of the file; integers with a scale are dequantized.

    Raises:
        BadTfliteError: the content cannot be read.
    """
    import tflite  # only where weights are converted

    dtypes: dict[Any, Any] = {
        tflite.TensorType.FLOAT32: np.float32,
        tflite.TensorType.FLOAT16: np.float16,
        tflite.TensorType.INT8: np.int8,
        tflite.TensorType.INT32: np.int32,
    }
    if content[4:8] != b"TFL3":
        raise BadTfliteError("this is not a TensorFlow Lite file: it lacks the mark TFL3")
    try:
        model: Any = tflite.Model.GetRootAs(content, 0)
        graph = model.Subgraphs(0)
        constants = {}
        for number in range(graph.TensorsLength()):
            tensor = graph.Tensors(number)
            buffer = model.Buffers(tensor.Buffer())
            if buffer.DataLength() == 0:
                continue
            values = np.frombuffer(buffer.DataAsNumpy().tobytes(), dtypes[tensor.Type()])
            shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else ()
            constants[tensor.Name().decode()] = _dequantized(values.reshape(shape), tensor.Quantization())
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise BadTfliteError(f"this TensorFlow Lite file cannot be read, it may be truncated: {error!r}") from error
    return constants


def _dequantized(values: np.ndarray, quantization: Any) -> np.ndarray:
    """scale * (value - zero point), with one scale for the whole tensor or one for each slice along its quantized dimension."""
    if quantization is None or quantization.ScaleLength() == 0:
        return values.astype(np.float32) if values.dtype == np.float16 else values.copy()
    along = [1] * values.ndim
    along[quantization.QuantizedDimension()] = -1
    scale = quantization.ScaleAsNumpy().reshape(along)
    zero_point = quantization.ZeroPointAsNumpy().reshape(along)
    return ((values.astype(np.float64) - zero_point) * scale).astype(np.float32)
