"""An encoder as ONNX; the result of onnxruntime is compared with torch's before the model is returned.

Input `images` (batch, 3, S, S) float32, normalized; output `features` (batch, F) and, if the encoder has a head, `logits` (batch, C). The
batch size is free. The model's metadata under `ray_sassl` describe the preprocessing and the origin of the weights.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from ray_sassl.exporting.encoder import Encoder
from ray_sassl.exporting.formats import TOLERANCE, FormatError, example_images, largest_difference
from ray_sassl.process.errors import UsageError

OPSET = 18
METADATA = "ray_sassl"


class _Outputs(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.head = encoder.backbone, encoder.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone(images)
        return (features,) if self.head is None else (features, self.head(features))


def onnx_bytes(encoder: Encoder) -> bytes:
    """The encoder's ONNX model, which gives torch's features to 1e-4 on batches of one and of three images.

    Raises:
        UsageError: the packages of the extra `onnx` are not installed.
        FormatError: the network cannot be written as ONNX, or onnxruntime's outputs differ.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise UsageError(f"ONNX needs packages that are not installed ({error.name}): pip install 'ray-sassl[onnx]'") from error
    network = _Outputs(encoder).eval()
    model = onnx.load_from_string(_exported(network, example_images(encoder, 2)))
    model.metadata_props.add(key=METADATA, value=encoder.facts.model_dump_json())
    content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for num_images in (1, 3):
        images = example_images(encoder, num_images)
        found = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = network(images)
        for name, ours, theirs in zip(_names(network), expected, found, strict=True):
            difference = largest_difference(torch.from_numpy(theirs), ours)
            if not difference <= TOLERANCE:
                raise FormatError(
                    f"{encoder.facts.backbone.name} cannot be exported as ONNX: onnxruntime's {name} of {num_images} images differ "
                    f"from torch's by {difference:.1e}, and {TOLERANCE:.0e} is allowed. The formats safetensors, torchvision and timm keep "
                    "torch's own network."
                )
    return content


def _exported(network: _Outputs, images: Tensor) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            with torch.no_grad():
                program = torch.onnx.export(
                    network,
                    (images,),
                    input_names=["images"],
                    output_names=_names(network),
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    opset_version=OPSET,
                    dynamo=True,
                    verbose=False,
                )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise FormatError(f"torch cannot write this network as ONNX: {str(error).splitlines()[0]}") from error
        assert program is not None
        program.save(str(path), external_data=False)
        return path.read_bytes()


def _names(network: _Outputs) -> list[str]:
    return ["features"] if network.head is None else ["features", "logits"]
