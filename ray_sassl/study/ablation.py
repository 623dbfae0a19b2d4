"""An ablation as a study: a trial is an arm with a seed, on a grid that goes through all arms of one seed before the next seed.

The study directory also has `ablation.yaml` (the arms, and what they are compared with) and the table in three forms. Scores that the
table compares are of the test images; no arm is stopped or chosen by any score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import Field

from ray_sassl.config.files import to_yaml
from ray_sassl.config.overrides import Override, OverrideError, apply_overrides, path_of, strictly
from ray_sassl.config.schema import ExperimentConfig
from ray_sassl.experiments.ablations import SIZES, Ablation, Arm
from ray_sassl.files import storage
from ray_sassl.pipeline import CropBlock
from ray_sassl.plugins import FrozenConfig, did_you_mean
from ray_sassl.process.errors import UsageError
from ray_sassl.runs.configs import Overrides, load_config, override_list
from ray_sassl.runs.dose import style_pixels
from ray_sassl.runs.dosing import matched, measure
from ray_sassl.runs.pictures import read_block
from ray_sassl.runs.process import build_style_augmentation
from ray_sassl.study.record import STUDY, StudyConfig, read_settings, read_study
from ray_sassl.study.space import Arms, Choice, SearchSpace

ABLATION = "ablation.yaml"
MOST_SEEDS = 1000
_SEED, _ARM = "seed", "arm"
_NO_PART = ("name", "seed", "evaluate", "tracking", "fault")
"""Parts of the config that no arm changes."""
Changes = Mapping[str, Mapping[str, Any]]
"""Values by path, by arm."""


class ArmConfig(FrozenConfig):
    """An arm of a table."""

    name: str
    against: tuple[str, ...] = ()
    """The arms that it is compared with; the first of a table with none."""


class AblationConfig(FrozenConfig):
    """What the table shows."""

    name: str
    about: str = ""
    arms: tuple[ArmConfig, ...] = Field(min_length=2)


def plan_ablation(
    ablation: Ablation,
    *,
    seeds: int,
    size: str = "cpu",
    experiment: ExperimentConfig | str | None = None,
    overrides: Overrides = None,
    strict: bool = False,
    begun: str | None = None,
    **fields: Any,
) -> tuple[AblationConfig, StudyConfig]:
    """The table and its study.

    Args:
        strict: Refuse data of which anything is left out.
        begun: The study directory, if the study is continued: strengths that were matched when it was begun are kept.
        fields: Further fields of the study.

    Raises:
        UsageError: size, experiment, overrides or the arms are wrong, or the data for an equal dose are missing.
    """
    base, common = base_of(ablation, size=size, experiment=experiment, overrides=overrides)
    base = strictly(base) if strict else base
    if not 1 <= seeds <= MOST_SEEDS:
        raise UsageError(f"a table has 1 to {MOST_SEEDS} seeds, not {seeds}")
    arms = list(ablation.arms(base))
    rows = _rows(ablation.name, arms)
    changes = _changes(base, arms, common, _recorded(begun))
    space = SearchSpace(
        parameters=(Choice(path=_SEED, choices=tuple(range(base.seed, base.seed + MOST_SEEDS))), Arms(key=_ARM, arms=changes)),
        objectives=("linear_top1" if base.evaluate.online == "linear" else "knn_top1",),
    )
    study = StudyConfig(
        name=ablation.name,
        base=base,
        space=space,
        objectives=space.objectives,
        searcher="grid",
        scheduler="fifo",
        num_trials=seeds * len(arms),
        **fields,
    )
    configs = arm_configs(study)
    _check_arms(base, configs)
    _check_effects(configs, override_list(overrides))
    return AblationConfig(name=ablation.name, about=ablation.about, arms=rows), study


def base_of(
    ablation: Ablation, *, size: str, experiment: ExperimentConfig | str | None, overrides: Overrides
) -> tuple[ExperimentConfig, list[Override]]:
    """The base experiment with the changes of size and user, and these changes.

    Raises:
        UsageError: the table has no such size, there is no such experiment, or an override is wrong.
    """
    if experiment is None and size not in ablation.experiments:
        known = ", ".join(ablation.experiments)
        raise UsageError(f"{ablation.name} has no size {size!r}{did_you_mean(size, ablation.experiments)}; it has {known}")
    common = [*(SIZES[size][1] if experiment is None and size in SIZES else ()), *override_list(overrides)]
    return load_config(experiment or ablation.experiments[size], common), common


def arm_configs(study: StudyConfig) -> dict[str, ExperimentConfig]:
    """The experiment of each arm, with the first seed."""
    return {name: study.space.config(study.base, {_SEED: study.base.seed, _ARM: name}) for name in _arms_of(study).arms}


def arm_of(point: Mapping[str, Any]) -> str:
    """The name of a trial's arm."""
    return str(point[_ARM])


def write_ablation(table: AblationConfig, study_dir: str) -> None:
    """Write `ablation.yaml`."""
    storage.write_text(storage.join(study_dir, ABLATION), to_yaml(table))


def read_ablation(study_dir: str) -> AblationConfig:
    """The table in a study directory.

    Raises:
        StudyDirectoryError: there is none, or it cannot be read.
    """
    return read_settings(AblationConfig, study_dir, ABLATION, "ablation")


def _arms_of(study: StudyConfig) -> Arms:
    return next(parameter for parameter in study.space.parameters if isinstance(parameter, Arms))


def _recorded(begun: str | None) -> Changes:
    if begun is None or not storage.exists(storage.join(begun, STUDY)):
        return {}
    return next((parameter.arms for parameter in read_study(begun).space.parameters if isinstance(parameter, Arms)), {})


def _rows(table: str, arms: Sequence[Arm]) -> tuple[ArmConfig, ...]:
    names = [arm.name for arm in arms]
    if len(set(names)) < max(2, len(names)):
        raise UsageError(f"{table} needs two arms or more, with different names, and has {', '.join(names) or 'none'}")
    rows = []
    for arm in arms:
        against = tuple(name for name in (arm.against if arm.against is not None else names[:1]) if name != arm.name)
        if unknown := [name for name in (*against, *((arm.dose_of,) if arm.dose_of else ())) if name not in names]:
            raise UsageError(f"{table}: {arm.name} names {', '.join(unknown)}, which is not an arm of the table")
        rows.append(ArmConfig(name=arm.name, against=against))
    return tuple(rows)


def _changes(base: ExperimentConfig, arms: Sequence[Arm], common: Sequence[Override], recorded: Changes) -> dict[str, dict[str, Any]]:
    """What differs from the base experiment in each arm, by part of the config."""
    configs: dict[str, ExperimentConfig] = {}
    for arm in arms:
        try:
            other = load_config(arm.experiment, common) if arm.experiment else base
            configs[arm.name] = apply_overrides(strictly(other) if base.data.strict else other, arm.overrides)
        except OverrideError as error:
            raise UsageError(f"the arm {arm.name!r} does not fit {base.name}: {error}") from error

    @cache
    def block() -> CropBlock:
        return read_block(base)[1]

    def pixels_of(name: str) -> float:
        return style_pixels(measure(configs[name], block(), build_style_augmentation(configs[name], "cpu", 1)))

    changes = {}
    for arm in arms:
        config = configs[arm.name]
        if arm.dose_of and arm.name in recorded:
            changes[arm.name] = dict(recorded[arm.name])
            continue
        if arm.dose_of:
            stylizer = {"name": config.stylize.name, **config.stylize.model_dump(mode="json")}
            config = apply_overrides(config, matched(config, block(), json.dumps(stylizer), pixels_of(arm.dose_of)))
        before, after = (one.model_dump(mode="json") for one in (base, config))
        changes[arm.name] = {part: after[part] for part in after if part not in _NO_PART and before[part] != after[part]}
    return changes


def _check_arms(base: ExperimentConfig, configs: Mapping[str, ExperimentConfig]) -> None:
    seen: dict[str, str] = {}
    for name, config in configs.items():
        if config.data != base.data:
            raise UsageError(f"the arm {name!r} has other data than {base.name}; the arms of a table share their data")
        same = seen.setdefault(config.model_copy(update={"name": ""}).model_dump_json(), name)
        if same != name:
            raise UsageError(f"the arms {same!r} and {name!r} are the same experiment")


def _check_effects(configs: Mapping[str, ExperimentConfig], overrides: Sequence[Override]) -> None:
    """Refuse changes of the user that every arm changes again."""
    for override in overrides:
        path = path_of(override)
        is_of_all = path.partition(".")[0] in (*_NO_PART, "data")
        if not is_of_all and all(_changed_again(config, override) for config in configs.values()):
            raise UsageError(f"{path} has no effect here, since every arm of the table sets it; leave it out")


def _changed_again(config: ExperimentConfig, override: Override) -> bool:
    try:
        return apply_overrides(config, [override]) != config
    except OverrideError:
        return True
