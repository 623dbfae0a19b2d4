from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from ray_sassl.config.overrides import apply_overrides
from ray_sassl.config.roles import changeable_paths, differing_paths, fixed_part, role_of, shaping_part
from ray_sassl.experiments import load_experiment
from ray_sassl.plugins import EXTENDABLE, OPERATIONAL, ROUNDING, SEED, Role

OTHERS = {
    "name": OPERATIONAL,
    "seed": SEED,
    "data.max_bad_fraction": OPERATIONAL,
    "data.cache_gb": OPERATIONAL,
    "data.strict": OPERATIONAL,
    "views.resizing": ROUNDING,
    "train.epochs": EXTENDABLE,
    "train.accumulate": EXTENDABLE,
    "train.compile": OPERATIONAL,
    "train.tf32": ROUNDING,
    "train.cudnn_benchmark": OPERATIONAL,
    "optim.foreach": ROUNDING,
    "train.log_every": OPERATIONAL,
    "train.checkpoint_every": OPERATIONAL,
    "train.checkpoint_min_s": OPERATIONAL,
    "train.keep_checkpoints": OPERATIONAL,
    "train.evaluate_every": OPERATIONAL,
    "evaluate": OPERATIONAL,
    "stream": OPERATIONAL,
    "scaling": OPERATIONAL,
    "tracking": OPERATIONAL,
    "fault": OPERATIONAL,
}
"""What does not simply shape the weights."""


def _roles(config: BaseModel, prefix: str = "") -> Iterator[tuple[str, Role]]:
    """Each field's path and role; below a part that has a role of its own, nothing."""
    for name, field in type(config).model_fields.items():
        role, value = role_of(field), getattr(config, name)
        if role == Role() and isinstance(value, BaseModel):
            yield from _roles(value, f"{prefix}{name}.")
        else:
            yield prefix + name, role


def test_every_field_shapes_the_weights_or_is_marked():
    roles = dict(_roles(load_experiment("demo")))
    assert {path: role for path, role in roles.items() if role != Role()} == OTHERS
    assert {"views.left.hue", "data.path", "data.block_rows", "optim.base_lr", "train.precision", "method.temperature"} <= roles.keys()
    assert list(changeable_paths()) == [path for path in roles if roles[path].resume_may_change]


@pytest.mark.parametrize("path", dict(_roles(load_experiment("demo"))))
def test_both_parts_of_a_config_follow_the_roles(path: str):
    config = load_experiment("demo")
    role = OTHERS.get(path, Role())
    before = config.model_dump(mode="json")
    after = _changed(before, path.split("."))
    assert (shaping_part(before) != shaping_part(after)) == role.shapes_weights
    assert (fixed_part(before) != fixed_part(after)) == (not role.resume_may_change)
    assert differing_paths(before, after) == [path]


def _changed(tree: dict[str, Any], names: list[str]) -> dict[str, Any]:
    name, *rest = names
    return tree | {name: _changed(tree[name], rest) if rest else "another"}


def test_two_seeds_are_of_one_recipe_and_the_plug_in_is_part_of_it():
    def part(*overrides: str) -> dict[str, Any]:
        return shaping_part(apply_overrides(load_experiment("demo"), overrides).model_dump(mode="json"))

    assert part("seed=1") == part("seed=2", "name=b", "scaling.num_workers=0")
    assert part("stylize=swift") != part("stylize=color_statistics")
