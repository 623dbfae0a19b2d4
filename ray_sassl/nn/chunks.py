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
    """Works on a few rows at a time. When memory runs out, the size is halved and the rows are tried again.

    Attributes:
        size: Rows per chunk; once halved, it stays halved.
    """

    size: int = 256

    def map(self, work: Callable[[np.ndarray], Result], rows: np.ndarray, most: int | None = None) -> list[tuple[np.ndarray, Result]]:
        """Each chunk of the rows (n,) with the result of `work`.

        Args:
            most: An upper limit for the rows of a chunk, even if more fit into memory.

        Raises:
            torch.OutOfMemoryError, RuntimeError, MemoryError: a single row does not fit into memory.
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
                log.warning("out of memory with %d images at once; continuing with %d", len(chunk), self.size)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            else:
                first += len(chunk)
        return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. PyTorch has an error class for CUDA; errors of its CPU allocator and CUDA's libraries differ only in the
    message."""
    says_so = any(words in str(error) for words in ("can't allocate memory", "STATUS_ALLOC_FAILED"))
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and says_so)
