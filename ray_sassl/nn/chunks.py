"""Work in chunks that shrink when memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass
class Chunks:
    """Work on a few rows at a time, and on fewer where memory does not suffice: the size is halved and the rows are tried again.

    Attributes:
        size: Rows at once; it stays halved.
    """

    size: int = 256

    def map(self, work: Callable[[np.ndarray], Result], rows: np.ndarray, most: int | None = None) -> list[tuple[np.ndarray, Result]]:
        """Each chunk of the rows (n,) with what `work` makes of it.

        Args:
            most: Rows of a chunk, however many memory would hold.

        Raises:
            torch.OutOfMemoryError, RuntimeError, MemoryError: memory does not suffice for a single row.
        """
        results: list[tuple[np.ndarray, Result]] = []
        first = 0
        while first < len(rows):
            chunk = rows[first : first + min(self.size, most or self.size)]
            try:
                results.append((chunk, work(chunk)))
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or len(chunk) == 1:
                    raise
                self.size = len(chunk) // 2
                log.warning("out of memory with %d images at once; going on with %d", len(chunk), self.size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            else:
                first += len(chunk)
        return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: PyTorch has a class of its own for CUDA; its CPU allocator and CUDA's libraries say it in words."""
    said = any(words in str(error) for words in ("can't allocate memory", "STATUS_ALLOC_FAILED"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and said)
