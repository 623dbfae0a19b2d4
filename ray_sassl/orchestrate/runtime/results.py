"""What tasks and actors return, and the errors of users that they raise."""

from __future__ import annotations

from typing import Any

import ray
import ray.exceptions

from ray_sassl.process.errors import UsageError


def result_of(ref: ray.ObjectRef) -> Any:
    """What a task or an actor's method returned. `UsageError`s are raised without Ray's traceback."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise _cause(error) from error
    except ray.exceptions.OutOfMemoryError as error:
        raise UsageError(
            "a node's memory did not suffice, and Ray ended an actor there again and again; start fewer actors, or give each more CPUs, so "
            f"that fewer share a node ({str(error).splitlines()[0]})"
        ) from error
    except ray.exceptions.ActorDiedError as error:
        # Ray wraps an error in an actor's constructor as the actor's death.
        for line in reversed(str(error).splitlines()):
            name, colon, text = line.strip().partition(": ")
            if colon and name.rpartition(".")[2].endswith("Error") and name.startswith("ray_sassl."):
                raise UsageError(text) from error
        raise


def _cause(error: ray.exceptions.RayTaskError) -> Exception:
    cause = error.cause
    return UsageError(str(cause)) if isinstance(cause, UsageError) else error
