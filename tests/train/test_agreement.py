"""What one of several ranks has noticed is known to all at the same step."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from ray_sassl.train.agreement import Agreement
from ray_sassl.train.context import LocalContext
from tests.together import run_together

WORLD_SIZE = 5  # a tree of three levels, one of them incomplete
NOTICED = {(3, 0): 4, (0, 1): 6, (4, 2): 9}
"""By (rank, flag): the step at which the rank sets it. Step 9 is answered at once."""
AT_ONCE = (6, 9)


def _rank(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=WORLD_SIZE)
    agreement, answers = Agreement(LocalContext(rank, WORLD_SIZE), 3), []
    for step in range(12):
        flags = [NOTICED.get((rank, flag)) == step for flag in range(3)]
        answers.append(agreement.exchange(flags, at_once=step in AT_ONCE))
    answers.append(agreement.settle())
    agreement.close()
    (folder / f"{rank}.json").write_text(json.dumps(answers))


@pytest.mark.slow
def test_all_ranks_know_at_the_next_step_or_at_once(tmp_path):
    run_together([[sys.executable, "-m", __name__, str(tmp_path), str(rank)] for rank in range(WORLD_SIZE)])
    answers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]
    assert all(other == answers[0] for other in answers)
    assert {(step, flag) for step, flags in enumerate(answers[0]) for flag, is_set in enumerate(flags) if is_set} == {
        (5, 0),
        (6, 1),
        (9, 2),
    }


def test_a_rank_that_is_alone_knows_at_once():
    assert Agreement(LocalContext(), 2).exchange([False, True], at_once=False) == [False, True]


if __name__ == "__main__":
    _rank(Path(sys.argv[1]), int(sys.argv[2]))
