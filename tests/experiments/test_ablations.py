"""Every table fits its experiments, and a table is a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sassl.api.ablations import _same_for_all
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.evaluation.protocols.knn import Config as Knn
from ray_sassl.evaluation.protocols.robustness import Config as Robustness
from ray_sassl.experiments.ablations import SIZES, Ablation, Arm, ablations, load_ablation
from ray_sassl.process.errors import UsageError
from ray_sassl.study import ablation as planning
from ray_sassl.study.ablation import arm_configs, plan_ablation
from tests.distribution import install

BANK = ("sassl.style_source=bank", "sassl.bank=styles.safetensors")
each_table = pytest.mark.parametrize("table", ablations().values(), ids=lambda table: table.name)


@pytest.fixture(autouse=True)
def _without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strengths of equal dose are given, and not measured on images that are not here."""
    monkeypatch.setattr(planning, "read_block", lambda config: (None, None))
    monkeypatch.setattr(planning, "build_style_augmentation", lambda config, device, threads: None)
    monkeypatch.setattr(planning, "measure", lambda config, block, style: [])
    monkeypatch.setattr(planning, "style_pixels", lambda doses: 5.0)
    strengths = ("sassl.alpha=[0.2, 0.6]", "sassl.beta=[0.2, 0.6]")
    monkeypatch.setattr(planning, "matched", lambda config, block, stylizer, pixels: [f"stylize={stylizer}", *strengths])


def _configs(table: Ablation, size: str, *overrides: str) -> dict[str, ExperimentConfig]:
    return arm_configs(plan_ablation(table, seeds=2, size=size, overrides=[*(BANK if table.name == "sassl_styles" else ()), *overrides])[1])


@each_table
@pytest.mark.parametrize("size", SIZES)
def test_every_table_has_each_size_and_arms_that_differ_in_what_is_ablated(table, size):
    configs = _configs(table, size)
    assert len(configs) >= 4
    assert table.about.endswith((".", ")."))
    allowed = {"method"} if table.name.startswith("fa_") else {"stylize", "sassl"}
    allowed |= {"views"} if table.name == "fa_views" else set()
    allowed |= {"method", "views", "optim", "train", "backbone"} if table.name == "sassl_method" else set()
    trees = [config.model_dump(mode="json") for config in configs.values()]
    assert {part for tree in trees for part in tree if tree[part] != trees[0][part]} <= allowed


def test_the_papers_tables_and_the_controls_are_there():
    sassl = {f"sassl_{what}" for what in ("method", "strength", "probability", "styles", "view")}
    assert sassl | {f"fa_{what}" for what in ("architecture", "stop_gradient", "samples", "views")} | {"style_controls"} <= set(ablations())


def test_the_controls_of_style_are_no_style_no_partner_and_two_stylizers_at_an_equal_dose():
    configs = _configs(load_ablation("style_controls"), "cpu")
    none, reconstruction, colors, amplitudes, style = configs.values()
    assert [one.stylize.name for one in configs.values()] == ["identity", "swift", "color_statistics", "fda", "swift"]
    assert reconstruction.sassl == style.sassl.model_copy(update={"alpha": (0, 0)})
    assert colors.sassl.alpha == amplitudes.sassl.beta == (0.2, 0.6)
    assert none.sassl == style.sassl
    assert none.scaling.num_workers == 0  # for two cores


def test_all_arms_are_judged_by_one_stylizer_that_none_was_trained_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path))
    view, controls = (_configs(load_ablation(name), "cpu") for name in ("sassl_view", "style_controls"))
    judged = _same_for_all(Robustness(), view)
    assert isinstance(judged, Robustness)
    assert judged.stylize is not None
    assert judged.stylize.name == "color_statistics"  # the published network is not on this machine, and swift was used
    with pytest.raises(UsageError, match="ray-sassl weights fetch magenta"):
        _same_for_all(Robustness(), controls)
    assert _same_for_all(judged, controls) == judged
    assert _same_for_all(Knn(), controls) == Knn()


def test_sums_of_losses_are_compared_with_as_many_losses():
    table, study = plan_ablation(load_ablation("fa_samples"), seeds=1)
    configs = arm_configs(study)
    for row in table.arms[1:]:
        one, other = (configs[name].method.fa for name in (row.name, row.against[0]))  # type: ignore[attr-defined]
        if one.augmentation.name != "control" and one.reduction == "free":
            assert (one.num_samples, one.reduction) == (other.num_samples, other.reduction)


def test_what_a_method_cannot_use_is_left_out_and_its_predictor_keeps_its_width():
    names = set(_configs(load_ablation("fa_architecture"), "cpu"))
    assert {"basic, nearest", "parallel_predictor, nearest"} <= names
    assert "post_predictor, nearest" not in names
    byol = plan_ablation(load_ablation("fa_architecture"), seeds=1, experiment="byol_fa_cifar10_cpu")[1]
    assert not any(name.startswith("basic") for name in arm_configs(byol))


def test_changes_of_the_user_reach_every_arm_and_those_without_effect_are_refused():
    configs = _configs(load_ablation("sassl_method"), "cpu", "train.epochs=2", "data.path=mine")
    assert {(config.train.epochs, config.data.path) for config in configs.values()} == {(2, "mine")}
    with pytest.raises(UsageError, match=r"sassl\.views has no effect here, since every arm of the table sets it"):
        plan_ablation(
            Ablation("t", "", {"cpu": "demo"}, lambda base: [_view("left"), _view("right")]), seeds=1, overrides=["sassl.views=both"]
        )


def test_seeds_come_in_turns_so_that_more_can_be_added():
    table = load_ablation("sassl_view")
    few, more = (plan_ablation(table, seeds=seeds)[1] for seeds in (2, 3))
    assert (few.num_trials, more.num_trials) == (8, 12)
    assert few.space == more.space
    points = [point for point, _ in zip(few.space.grid(few.base), range(9), strict=False)]
    assert [point["seed"] for point in points] == [0] * 4 + [1] * 4 + [2]


def _view(name: str) -> Arm:
    return Arm(name, (f"sassl.views={name}",))


@pytest.mark.parametrize(
    ("arms", "reason"),
    [
        ([_view("left")], "needs two arms or more"),
        ([_view("left"), _view("left")], "with different names"),
        ([_view("left"), Arm("again", ("sassl.views=left",))], "'left' and 'again' are the same experiment"),
        ([_view("left"), Arm("right", against=("lfet",))], "right names lfet, which is not an arm"),
        ([_view("left"), Arm("other", ("data.path=other",))], "has other data than demo"),
        ([_view("left"), Arm("wrong", ("sassl.veiws=left",))], r"'wrong' does not fit demo: .*nearest is sassl\.views"),
    ],
)
def test_arms_that_make_no_table_are_refused(arms, reason):
    with pytest.raises(UsageError, match=reason):
        plan_ablation(Ablation("mine", "", {"cpu": "demo"}, lambda base: arms), seeds=1)


def test_wrong_names_and_sizes_are_answered_with_the_right_ones():
    with pytest.raises(UsageError, match=r"no ablation is called 'sassl_veiw' \(did you mean 'sassl_view'\?\)"):
        load_ablation("sassl_veiw")
    with pytest.raises(UsageError, match="has no size 'gpus'"):
        plan_ablation(load_ablation("sassl_view"), seeds=1, size="gpus")
    with pytest.raises(UsageError, match="needs a bank of styles"):
        plan_ablation(load_ablation("sassl_styles"), seeds=1)
    with pytest.raises(UsageError, match="no style to control"):
        plan_ablation(load_ablation("style_controls"), seeds=1, experiment="moco_cifar10_cpu")
    with pytest.raises(UsageError, match="demo is not one of moco_cifar10_cpu_sassl"):
        plan_ablation(load_ablation("sassl_method"), seeds=1, experiment="demo")


MINE = '''"""Mine."""
from ray_sassl.experiments.ablations import Arm
EXPERIMENTS = {"cpu": "demo"}
def arms(base):
    return [Arm("left"), Arm("right", ("sassl.views=right",))]
'''


def test_users_bring_their_own_table_as_a_file_or_in_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(MINE)
    mine = load_ablation(str(tmp_path / "mine.py"))
    assert (mine.name, mine.about, len(plan_ablation(mine, seeds=1)[0].arms)) == ("mine", "Mine.", 2)
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(UsageError, match="is not an ablation: it needs EXPERIMENTS"):
        load_ablation(str(tmp_path / "empty.py"))
    with pytest.raises(UsageError, match="there is no file"):
        load_ablation("nowhere.py")
    install(tmp_path, "brought_tables", {"ablations/theirs.py": MINE})
    monkeypatch.syspath_prepend(tmp_path)
    assert load_ablation("theirs").name == "theirs"
