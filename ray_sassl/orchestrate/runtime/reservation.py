"""Resources that outlive their run: the placement group of its workers, where the process that launched them is killed.

Ray gives it back at the end of the whole job, which for a trial is the end of its study, and the next attempt would wait for it for ever.
So a worker writes down which one it is in, and the next attempt on the run removes that first.
"""

from __future__ import annotations

import ray
from ray import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from ray_sassl.files import storage

_NOTE = "placement_group"


def note_reservation(run_dir: str) -> None:
    """Write down which placement group this worker is in."""
    group = ray.util.get_current_placement_group()
    if group is not None:
        storage.write_text(storage.join(run_dir, _NOTE), group.id.hex())


def release_reservation(run_dir: str) -> None:
    """Give back what an attempt on the run holds that was killed; one that ended in order has done so itself."""
    path = storage.join(run_dir, _NOTE)
    if storage.exists(path):
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(storage.read_text(path))))
        storage.remove(path)
