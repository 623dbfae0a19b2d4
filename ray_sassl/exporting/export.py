"""An encoder as a folder to share: the weights in one format, the card, and the config of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.config.overrides import Override, apply_overrides, strictly
from ray_sassl.exporting.card import CardFacts, card
from ray_sassl.exporting.embedding import Embedder
from ray_sassl.exporting.encoder import MODEL, Encoder, encoder_bytes, encoder_of
from ray_sassl.exporting.formats import HUB_CONFIG, Format, FormatError, check_hub_folder, hub_config, library_model
from ray_sassl.exporting.head import LinearHead, fit_head
from ray_sassl.exporting.onnx_file import onnx_bytes
from ray_sassl.files import storage
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.directory import find_checkpoint
from ray_sassl.runs.files import CONFIG
from ray_sassl.runs.record import RunRecord, read_run

CARD = "README.md"
_ONNX_MODEL = "model.onnx"


@dataclass(frozen=True)
class Export:
    """The result of an export.

    Attributes:
        model: Path of the weights.
        card: Path of the card.
        encoder: The exported encoder.
        head: The classifier that was fitted for it, or None.
    """

    model: str
    card: str
    encoder: Encoder
    head: LinearHead | None


def export_encoder(
    source: str,
    format_: Format,
    out: str,
    *,
    with_head: bool = False,
    overrides: Sequence[Override] | None = None,
    strict: bool = False,
    size_px: int | None = None,
    license: str | None = None,
) -> Export:
    """Write `model.safetensors` or `model.onnx`, `README.md` and `config.yaml` (for `hf` also `config.json`) to the folder, after a check
    that the exported weights give the same features.

    Args:
        source: A run directory (its newest intact checkpoint) or a checkpoint.
        format_: The library whose names the tensors get, ONNX, or `hf`, a folder that timm and transformers load as a
            whole. `load_encoder` reads all formats but ONNX.
        out: A folder or URI without an export.
        with_head: Also fit a linear classifier on `evaluate.train` and measure it on `evaluate.test`.
        overrides: Changes to the run's config, for example to name those data, or to take the teacher (`evaluate.network`) or layers of
            the projector (`evaluate.layer`, ONNX only).
        strict: Whether data of which anything is left out are refused.
        size_px: Side of the images; see `load_encoder`.
        license: License of the weights, for the card.

    Raises:
        UsageError: there is no checkpoint, the format does not fit the network, the folder contains an export, or a head is requested
            without labeled images.
    """
    model_name = _ONNX_MODEL if format_ == "onnx" else MODEL
    there = [name for name in (MODEL, _ONNX_MODEL, HUB_CONFIG, CARD) if storage.exists(storage.join(out, name))]
    if there:
        raise UsageError(f"{out} already contains {', '.join(there)}; give another --out, one folder per export")
    checkpoint = find_checkpoint(source)
    trained_config = from_yaml(checkpoint.config_yaml, source=f"{checkpoint.path}/{CONFIG}")
    config = apply_overrides(trained_config, overrides or [])
    config = strictly(config) if strict else config
    if config.evaluate.layer != "backbone" and format_ != "onnx":
        raise FormatError(f"evaluate.layer={config.evaluate.layer} has layers of the projector, which only onnx can hold: --format onnx")
    _, encoder = encoder_of(checkpoint, size_px, config.evaluate.network, config.evaluate.layer)
    head = None
    if with_head:
        if config.evaluate.train is None:
            raise UsageError("a linear head needs labeled images to be fitted on: 'evaluate.train={path: FOLDER}'")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        head = fit_head(Embedder(encoder, device, torch.get_num_threads()), config.evaluate.train, config.evaluate.test)
        encoder = Encoder(encoder.backbone.cpu(), encoder.facts.model_copy(update={"classes": head.classes}), head.layer)
    content, code, described = _content(encoder, format_)
    about = CardFacts(encoder.facts, trained_config, format_, model_name, code, head, _run_of(checkpoint.path), license)
    storage.write_bytes(storage.join(out, model_name), content)
    if described is not None:
        storage.write_text(storage.join(out, HUB_CONFIG), described)
    storage.write_text(storage.join(out, CONFIG), to_yaml(trained_config))
    storage.write_text(storage.join(out, CARD), card(about))
    return Export(storage.join(out, model_name), storage.join(out, CARD), encoder, head)


def _content(encoder: Encoder, format_: Format) -> tuple[bytes, tuple[str, ...], str | None]:
    """The file, the lines of Python that build the library's model, and the description of the folder for hubs, if the format has one."""
    if format_ == "onnx":
        return onnx_bytes(encoder), (), None
    if format_ == "safetensors":
        return encoder_bytes(encoder), (), None
    built = library_model(encoder, "timm" if format_ == "hf" else format_)
    content = encoder_bytes(encoder, built.head)
    if format_ != "hf":
        return content, built.code, None
    described = hub_config(encoder, built)
    check_hub_folder(encoder, content, described)
    return content, (), described


def _run_of(checkpoint: str) -> RunRecord | None:
    """The run of the checkpoint, or None if the checkpoint was copied elsewhere."""
    run_dir = storage.parent(storage.parent(checkpoint))
    return read_run(run_dir) if storage.exists(storage.join(run_dir, CONFIG)) else None
