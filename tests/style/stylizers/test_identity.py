from __future__ import annotations

import torch

from ray_sassl.plugins import load_plugin, plugin_names
from ray_sassl.style.stylizers.identity import Config


def test_images_come_back_as_they_are():
    stylizer = Config().build(torch.device("cpu"))
    images = torch.rand(2, 3, 8, 8)
    assert stylizer.render(images, stylizer.embed(images)) is images


def test_it_is_the_only_stylizer_that_calls_itself_identity():
    configs = {name: load_plugin("ray_sassl.style.stylizers", name).Config for name in plugin_names("ray_sassl.style.stylizers")}
    assert [name for name, config in configs.items() if config.is_identity] == ["identity"]
