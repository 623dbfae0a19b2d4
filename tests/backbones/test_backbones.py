import pytest
import timm
import torch
from torch import nn

from ray_sassl.backbones import BackboneConfig, build_backbone
from ray_sassl.process.errors import UsageError


@pytest.mark.parametrize(
    ("name", "stem", "num_features"),
    [("resnet20", "imagenet", 64), ("resnet18", "cifar", 512), ("timm/resnet18", "cifar", 512), ("mobilenet_v3_small", "imagenet", 1024)],
)
def test_an_encoder_gives_features_of_the_width_it_promises(name, stem, num_features):
    backbone, promised = build_backbone(BackboneConfig(name=name, stem=stem))
    assert promised == num_features
    assert backbone.eval()(torch.randn(2, 3, 32, 32)).shape == (2, num_features)


def test_a_vision_transformer_takes_small_views_and_does_not_change_what_it_makes_of_its_own_size():
    backbone, num_features = build_backbone(BackboneConfig(name="timm/vit_tiny_patch16_224"))
    whole = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    whole.load_state_dict(backbone.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(backbone.eval()(x), whole.eval()(x))
        assert backbone(torch.randn(2, 3, 96, 96)).shape == (2, num_features)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18"])
def test_the_cifar_stem_keeps_the_size_of_the_image(name):
    backbone, _ = build_backbone(BackboneConfig(name=name, stem="cifar"))
    sizes = []
    backbone.get_submodule("layer1").register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[1:])))
    backbone.eval()(torch.randn(1, 3, 32, 32))
    assert sizes == [(64, 32, 32)]


@pytest.mark.parametrize(("name", "norm"), [("resnet18", "bn2"), ("timm/resnet18", "bn2")])
@pytest.mark.parametrize("is_zero", [False, True])
def test_zero_init_residual_sets_the_last_normalization_of_each_block(name, norm, is_zero):
    backbone, _ = build_backbone(BackboneConfig(name=name, zero_init_residual=is_zero))
    layer = backbone.get_submodule(f"layer1.0.{norm}")
    assert isinstance(layer, nn.BatchNorm2d)
    assert (layer.weight == (0 if is_zero else 1)).all()


def test_the_same_seed_gives_the_same_weights():
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(build_backbone(BackboneConfig(name="resnet18", stem="cifar"))[0].state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet51", "did you mean 'resnet5[06]'"),
        ("timm/resnet181", "did you mean 'resnet18'"),
        ("hub/resnet18", "no source of backbones is called 'hub'"),
        ("squeezenet1_0", "classifier is not a single linear layer"),
    ],
)
def test_a_name_that_is_no_encoder_is_refused_with_the_nearest_one(name, message):
    with pytest.raises(UsageError, match=message):
        build_backbone(BackboneConfig(name=name))


@pytest.mark.parametrize("option", [{"stem": "cifar"}, {"zero_init_residual": True}])
def test_an_option_that_the_network_cannot_take_is_refused(option):
    with pytest.raises(UsageError, match="mobilenet_v3_small"):
        build_backbone(BackboneConfig(name="mobilenet_v3_small", **option))
