"""The index of a data set for the tasks and actors of a command."""

from __future__ import annotations

import fcntl
import logging
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache

import ray

from ray_sassl.data.index import Index, indexes_dir
from ray_sassl.orchestrate.runtime.capacity import is_one_machine

log = logging.getLogger(__name__)

_ENDING = ".shared"


@contextmanager
def shared_index(index: Index) -> Iterator[Index]:
    """The index in a form that costs little to send: on one machine the processes map its file, which is there for as long as the block.

    On a cluster, whose nodes may have nothing in common but the data, each node has one copy of it in Ray's object store, which its
    processes map. Ray must have been initialized.
    """
    with ExitStack() as stack:
        shared = None
        if is_one_machine():
            try:
                shared = index.at(stack.enter_context(_saved(index)))
            except OSError as error:
                log.warning("the index cannot be written to the cache folder, so it takes room in Ray's object store (%s)", error)
        yield shared or replace(index, sent_as=(_of_node, ray.put(index)))


@lru_cache(maxsize=4)
def _of_node(ref: ray.ObjectRef) -> Index:
    """The index in the store of this process's node."""
    return replace(ray.get(ref), sent_as=(_of_node, ref))


@contextmanager
def _saved(index: Index) -> Iterator[str]:
    """The path of a file with the index. This process holds a lock on it, by which files of commands that were killed are told apart."""
    folder = indexes_dir()
    for old in folder.glob("*" + _ENDING):
        with suppress(OSError), old.open() as file:  # OSError: somebody holds it, or deletes it too
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()
    new = folder / uuid.uuid4().hex
    path = new.with_suffix(_ENDING)
    try:
        index.save(new)
        with new.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield str(new.rename(path))
    finally:
        for file in (new, path):
            file.unlink(missing_ok=True)
