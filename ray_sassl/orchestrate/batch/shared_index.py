"""The index of a data set for the tasks and actors of a command."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ray_sassl.data.index import Index, indexes_dir
from ray_sassl.orchestrate.runtime.capacity import is_one_machine

log = logging.getLogger(__name__)


@contextmanager
def shared_index(index: Index) -> Iterator[Index]:
    """The index in a form that costs little to send: on one machine the processes map its file, which is there for as long as the block.

    On a cluster it is sent as it is, since its nodes may have nothing in common but the data. Ray must have been initialized.
    """
    path = None
    if is_one_machine():
        try:
            path = indexes_dir() / f"{os.getpid()}-{uuid.uuid4().hex[:12]}.shared"
            index.save(path)
        except OSError as error:
            log.warning("the index cannot be written to the cache folder, so that each process gets a copy of it (%s)", error)
            path = None
    if path is None:
        yield index
        return
    try:
        yield index.at(str(path))
    finally:
        path.unlink(missing_ok=True)
