"""The parts of encoders: what is frozen, and what is trained at a lower rate."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.backbones.parts import freeze, layer_scales
from ray_sassl.process.errors import UsageError


def _encoder(name: str = "resnet18") -> nn.Module:
    return build_backbone(BackboneConfig(name=name))[0]


@pytest.mark.parametrize(
    ("frozen", "trained"), [("stem", "layer1.0.conv1.weight"), ("2", "layer3.0.conv1.weight"), ("all", None), ("none", "conv1.weight")]
)
def test_frozen_parts_keep_their_weights_and_statistics_also_in_a_copy(frozen: str, trained: str | None):
    original = _encoder()
    freeze(original, frozen)
    for encoder in (original, copy.deepcopy(original)):
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        first = next((name for name, parameter in encoder.named_parameters() if parameter.requires_grad), None)
        assert first == trained
        encoder.train()
        encoder(torch.rand(4, 3, 32, 32))
        changed = [name for name, tensor in encoder.state_dict().items() if not torch.equal(tensor, before[name])]
        assert all(name >= trained.partition(".")[0] or frozen == "none" for name in changed) if trained else not changed


def test_more_blocks_than_there_are_cannot_be_frozen():
    with pytest.raises(UsageError, match="the encoder has 4 blocks: layer1, layer2, layer3, layer4"):
        freeze(_encoder(), "5")


def test_a_transformers_first_blocks_are_frozen_with_its_stem():
    encoder = _encoder("timm/vit_tiny_patch16_224")
    assert freeze(encoder, "2")[-2:] == ("blocks.0", "blocks.1")
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert not trained & {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc1.weight"}
    assert "blocks.2.mlp.fc1.weight" in trained


def test_each_block_of_a_resnet_has_half_the_rate_of_the_next():
    scales = layer_scales(_encoder(), 0.5)
    assert scales["conv1.weight"] == scales["bn1.bias"] == 0.5**5
    assert [scales[f"layer{number}.1.conv2.weight"] for number in (1, 2, 3, 4)] == [0.5**4, 0.5**3, 0.5**2, 0.5]


def test_a_transformers_rates_are_those_of_the_official_code_of_mae():
    """`util/lr_decay.py` of facebookresearch/mae: token and patch embeddings are layer 0, block i is layer i + 1, all else is the last."""
    encoder = _encoder("timm/vit_tiny_patch16_224")

    def layer(name: str) -> int:
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks") else 13

    assert layer_scales(encoder, 0.75) == {name: 0.75 ** (13 - layer(name)) for name, _ in encoder.named_parameters()}


def test_an_encoder_without_blocks_has_no_rates_by_layer():
    with pytest.raises(UsageError, match="no blocks"):
        layer_scales(nn.Sequential(nn.Linear(2, 2)), 0.5)
