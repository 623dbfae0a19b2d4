"""A plug-in is one file: those below are installed as another distribution's, and the shared tests of their kinds find and run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distribution import install

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "more_plugins"
FILES = {
    "methods/added_objective.py": '''"""The views of an image shall have equal features, of length 1."""

from __future__ import annotations

from ray_sassl.methods import MethodConfig
from ray_sassl.nn.method import Method, StepOutput
from torch import nn
from torch.nn import functional as F


class Config(MethodConfig):
    num_outputs: int = 4096

    def build(self, backbone, num_features) -> AddedObjective:
        return AddedObjective(self, backbone, num_features)


class AddedObjective(Method):
    def __init__(self, config, backbone, num_features):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(num_features, config.num_outputs)

    def forward(self, views, generator, sample_id=None) -> StepOutput:
        left, right = (F.normalize(self.head(self.backbone(view)).float(), dim=1) for view in views)
        return StepOutput((2 - 2 * (left * right).sum(1)).mean(), left.detach(), 2.0, {})
''',
    "feature_aug/added_augmentation.py": '''"""Each embedding is made longer or shorter."""

from __future__ import annotations

from pydantic import Field
from ray_sassl.feature_aug import FeatureAugConfig, FeatureAugmentation, repeated
from ray_sassl.feature_aug.draws import uniform


class Config(FeatureAugConfig):
    stretch: float = Field(default=0.3, ge=0, lt=1)

    def build(self, embedding_size, num_samples) -> AddedAugmentation:
        return AddedAugmentation(self.stretch, num_samples)

    def weakest(self):
        return self.model_copy(update={"stretch": 0.0})


class AddedAugmentation(FeatureAugmentation):
    def __init__(self, stretch, num_samples):
        super().__init__()
        self.stretch, self.num_samples = stretch, num_samples

    def forward(self, embeddings, generator, sample_id=None):
        features = repeated(embeddings, self.num_samples)
        if not self.training:
            return features
        draws = uniform(self.num_samples, embeddings, generator)[:, :, None].to(embeddings.dtype)
        return features * (1 + self.stretch * (draws - 0.5))
''',
    "stylizers/added_stylizer.py": '''"""A style is a mean color."""

from __future__ import annotations

from ray_sassl.style.stylizers import Stylizer, StylizerConfig


class Config(StylizerConfig):
    def build(self, device) -> AddedStylizer:
        return AddedStylizer()


class AddedStylizer(Stylizer):
    bundle_id = "added-v1"
    code_size = 3

    def embed(self, images):
        return images.float().mean(dim=(2, 3))

    def render(self, images, codes):
        return (images + (codes - self.embed(images))[:, :, None, None].to(images.dtype)).clamp(0, 1)
''',
    "protocols/added_protocol.py": '''"""The class of the most similar train image."""

from __future__ import annotations

from ray_sassl.evaluation import Evaluation, FeatureSubject
from ray_sassl.evaluation.geometry import nearest
from ray_sassl.evaluation.protocols import Protocol, ProtocolConfig
from ray_sassl.evaluation.scores import classification_scores
from torch import from_numpy
from torch.nn.functional import one_hot


class Config(ProtocolConfig):
    def build(self) -> AddedProtocol:
        return AddedProtocol()


class AddedProtocol(Protocol):
    def evaluate(self, subject: FeatureSubject) -> Evaluation:
        train, test = subject.features("train"), subject.features("test")
        _, places = nearest(test.features, train.features, 1)
        votes = one_hot(from_numpy(train.labels)[places[:, 0]]).float()
        scores, predictions = classification_scores(votes, test)
        return Evaluation(scores, predictions=predictions)
''',
    "ablations/added_table.py": '''"""How often views are stylized, in quarters."""

from ray_sassl.experiments.ablations import Arm, sized

EXPERIMENTS = sized("moco", "_sassl")


def arms(base):
    return [Arm(f"{prob:.0%}", (f"sassl.prob={prob}",)) for prob in (0.25, 0.5, 0.75, 1.0)]
''',
    "tune_spaces/added_space.py": '''"""The learning rate of the added objective."""

from ray_sassl.study.space import Float, SearchSpace

EXPERIMENT = "added_objective_cifar10_cpu"


def space(base):
    rate = base.optim.base_lr
    return SearchSpace(parameters=(Float(path="optim.base_lr", low=rate / 10, high=rate * 10, log=True),))
''',
}
"""Plug-ins of a few lines, one of each kind."""
SHARED_TESTS = {
    "tests/methods/test_contract.py": "added_objective",
    "tests/feature_aug/test_contract.py": "added_augmentation",
    "tests/style/stylizers/test_contract.py": "added_stylizer",
    "tests/evaluation/protocols/test_contract.py": "added_protocol",
    "tests/tune_spaces/test_spaces.py": "added_space or (feature_augmentation and (fifty or dimension))",
    "tests/experiments/test_experiments.py": "added_objective or every_objective",
    "tests/experiments/test_ablations.py": "added_table",
    "tests/config/test_schema.py": "added_stylizer",
    "tests/test_architecture.py": "added",
}
"""Test modules, and what is run of them: the tests of the added plug-ins, and those that look at all plug-ins together."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process in which the plug-ins are installed."""
    folder = tmp_path_factory.mktemp("site-packages")
    install(folder, PACKAGE, FILES)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def _run(environment: dict[str, str], *words: str) -> str:
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_shared_tests_find_the_added_plugins_and_pass(environment: dict[str, str]):
    chosen = " or ".join(f"({words})" for words in dict.fromkeys(SHARED_TESTS.values()))
    output = _run(environment, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", chosen, *SHARED_TESTS)
    for path in FILES:
        assert len(re.findall(rf"^PASSED .*{Path(path).stem}.*$", output, re.MULTILINE)) >= 3, path


def test_added_plugins_are_chosen_by_their_names(environment: dict[str, str]):
    code = (
        "from ray_sassl.config.overrides import apply_overrides as change\n"
        "from ray_sassl.experiments import load_experiment as load\n"
        "config = change(load('simclr_cifar10_cpu'), ['method.fa.augmentation={name: added_augmentation, stretch: 0.5}', "
        "'stylize=added_stylizer'])\n"
        "print(config.method.fa.augmentation.stretch, config.stylize.name, load('added_objective_cifar10_cpu').method.num_outputs)\n"
        "from tune_spaces import load_space\n"
        "space = load_space('feature_augmentation').space(load('simclr_cifar10_cpu'))\n"
        "print([(d.low, d.high) for d in space.dimensions if d.name == 'method.fa.augmentation.stretch'])\n"
    )
    assert _run(environment, "-c", code).split("\n")[:2] == ["0.5 added_stylizer 512", "[(0.0, 0.6)]"]


def test_light_workers_load_no_plugin(environment: dict[str, str]):
    code = f"import sys, ray_sassl.pipeline\nprint([name for name in sys.modules if name.startswith(('torch', '{PACKAGE}'))])"
    assert _run(environment, "-c", code).strip() == "[]"


def test_a_kind_is_looked_for_without_loading_the_others(environment: dict[str, str]):
    code = (
        "import sys\nfrom ray_sassl.plugins import find_modules\n"
        "print(find_modules('tune_spaces')['added_space'])\n"
        f"print(sorted(name for name in sys.modules if name.startswith('{PACKAGE}')))\n"
    )
    names = [f"{PACKAGE}.{kind}" for kind in ("ablations", "feature_aug", "methods", "protocols", "stylizers", "tune_spaces")]
    found, loaded = _run(environment, "-c", code).splitlines()
    assert found == f"{PACKAGE}.tune_spaces.added_space"
    assert not set(re.findall(r"[\w.]+", loaded)) & {f"{name}.{path}" for name in names for path in ("added_objective", "added_stylizer")}
