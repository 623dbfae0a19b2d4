"""Resources that outlive their run: the placement group of its workers, if the process that launched them is killed.

Ray releases it at the end of the whole job, which for a trial is the end of its study, and the next attempt would wait for it forever. So a
worker writes the id of its placement group to the run directory, and the next attempt at the run removes that group first.
"""

from __future__ import annotations

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from ray_sassl.files import storage

_NOTE = "placement_group"


def note_reservation(run_dir: str) -> None:
    """Write the id of this worker's placement group to the run directory."""
    group = ray.util.get_current_placement_group()
    if group is not None:
        storage.write_text(storage.join(run_dir, _NOTE), group.id.hex())


def release_reservation(run_dir: str) -> None:
    """Release what a killed attempt at the run still holds; an attempt that ended normally has released it itself."""
    path = storage.join(run_dir, _NOTE)
    if storage.exists(path):
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(storage.read_text(path))))
        storage.remove(path)
