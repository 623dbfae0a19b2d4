"""What every protocol promises, whichever there are: each is run on images whose labels say nothing about them."""

from __future__ import annotations

import io
import json
import typing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.config.overrides import apply_overrides
from ray_sassl.data import DataConfig
from ray_sassl.evaluation import Evaluation, FeatureSubject, FixedFeatures
from ray_sassl.evaluation.datasets import labeled_data
from ray_sassl.evaluation.protocols import ProtocolConfig
from ray_sassl.evaluation.subject import EncoderSubject
from ray_sassl.experiments import load_experiment
from ray_sassl.plugins import load_plugin, plugin_names

NUM_IMAGES, NUM_CLASSES, SIZE_PX = 270, 3, 32

pytestmark = pytest.mark.slow


def _shuffled(path: Path, seed: int) -> DataConfig:
    """Noisy images of a drawn color with labels that are drawn apart from them, as many of each class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(NUM_IMAGES) % NUM_CLASSES)
    images = []
    for color in rng.uniform(60, 200, (NUM_IMAGES, 3)):
        out = io.BytesIO()
        pixels = (color + rng.normal(0, 30, (SIZE_PX, SIZE_PX, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out, "PNG")
        images.append(out.getvalue())
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, pa.int32())}), path, row_group_size=90)
    return DataConfig(path=str(path))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, DataConfig]:
    folder = tmp_path_factory.mktemp("shuffled")
    return _shuffled(folder / "train.parquet", 0), _shuffled(folder / "test.parquet", 1)


@pytest.fixture(scope="module")
def subject(splits: tuple[DataConfig, DataConfig]) -> EncoderSubject:
    config = apply_overrides(load_experiment("demo_plain"), [f"evaluate.size_px={SIZE_PX}"])
    torch.manual_seed(0)
    encoder = build_backbone(BackboneConfig(name="resnet20"))[0]
    return EncoderSubject(encoder, config, labeled_data(*splits, SIZE_PX))


_known: dict[str, Evaluation] = {}


@pytest.fixture(params=plugin_names("ray_sassl.evaluation.protocols"))
def found(request: pytest.FixtureRequest, subject: EncoderSubject, splits: tuple[DataConfig, DataConfig]) -> Evaluation:
    name: str = request.param
    if name not in _known:
        _known[name] = _config(name, *splits).build().evaluate(subject)
    return _known[name]


def _config(name: str, train: DataConfig, test: DataConfig) -> ProtocolConfig:
    config = load_plugin("ray_sassl.evaluation.protocols", name).Config
    if not config.brings_images:
        return config.tiny()
    own = {"train": train, "test": test}
    return config(**config.tiny().model_dump() | ({"targets": [{"name": "mine", **own}]} if "targets" in config.model_fields else own))


def test_shuffled_labels_score_chance(found: Evaluation):
    """A share with an interval is of test images, and knows its chance."""
    shares = {name: score for name, score in found.scores.items() if score.is_share and (score.low, score.chance) != (None, None)}
    assert shares or found.predictions is None
    for name, score in shares.items():
        assert score.chance is not None, name
        assert abs(score.value - score.chance) < 0.1, (name, score)  # three standard errors of 270 images
        assert not name.endswith("top1") or abs(score.chance - 1 / NUM_CLASSES) < 0.1, (name, score)


def test_protocols_that_declare_so_need_features_only(request: pytest.FixtureRequest, found: Evaluation, subject: EncoderSubject):
    protocol = load_plugin("ray_sassl.evaluation.protocols", request.node.callspec.params["found"]).Config.tiny().build()
    if typing.get_type_hints(protocol.evaluate)["subject"] is FeatureSubject:
        again = protocol.evaluate(FixedFeatures(subject.features("train"), subject.features("test")))
        assert again.scores == found.scores


def test_intervals_hold_their_score_and_everything_can_be_written(found: Evaluation):
    for name, score in found.scores.items():
        assert np.isfinite(score.value), name
        if score.low is not None and score.high is not None:
            assert score.low <= score.value <= score.high, name
    json.dumps(found.details, allow_nan=False)
    for content in found.figures.values():
        Image.open(io.BytesIO(content)).verify()


def test_predictions_are_of_the_test_images(found: Evaluation, subject: EncoderSubject):
    if found.predictions is None:
        return
    sample_id, labels = subject.labels("test")
    assert found.predictions.sample_id.tolist() == sample_id.tolist()
    assert found.predictions.labels.tolist() == labels.tolist()
