"""What one rank has noticed, known to all of them at the same step, without a step that waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import torch
import torch.distributed as dist

from ray_sassl.train.context import Context


class Agreement:
    """Whether any rank has set a flag: asked at one step and answered at the next, so at the same step on all ranks.

    A thread exchanges the flags over a binary tree of the ranks' CPUs, in a process group of its own: up to rank 0 and down again, so it
    takes 2 log2(W) hops, and the step that runs meanwhile waits for none of them. Every rank must make it, and call it, at the same steps.
    """

    def __init__(self, context: Context, num_flags: int) -> None:
        self._rank, self._world_size, self._none = context.rank, context.world_size, [False] * num_flags
        self._pending: Future[list[bool]] | None = None
        if self._world_size > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="agreement")

    def exchange(self, flags: Sequence[bool], *, at_once: bool) -> list[bool]:
        """The flags of the step before, and ask for this step's.

        Args:
            at_once: Wait for this step's flags too, and return them with the others; for steps at which the ranks wait for each other
                anyway. Alone a rank always knows at once.
        """
        if self._world_size == 1:
            return list(flags)
        asked = self._thread.submit(self._over_the_tree, list(flags))
        before, self._pending = self.settle(), asked
        return [a or b for a, b in zip(before, self.settle(), strict=True)] if at_once else before

    def settle(self) -> list[bool]:
        """The flags that were asked for and not yet returned."""
        pending, self._pending = self._pending, None
        return self._none if pending is None else pending.result()

    def close(self) -> None:
        """End the thread once it has its answer; another rank that has failed may never give it, so it is not waited for."""
        if self._world_size > 1:
            self._thread.shutdown(wait=False)

    def _over_the_tree(self, flags: list[bool]) -> list[bool]:
        parent = (self._rank - 1) // 2
        children = [child for child in (2 * self._rank + 1, 2 * self._rank + 2) if child < self._world_size]
        mine, other = torch.tensor(flags, dtype=torch.uint8), torch.empty(len(flags), dtype=torch.uint8)
        for child in children:
            dist.recv(other, child, self._group)
            mine |= other
        if self._rank > 0:
            dist.send(mine, parent, self._group)
            dist.recv(mine, parent, self._group)
        for child in children:
            dist.send(mine, child, self._group)
        return [bool(flag) for flag in mine]
