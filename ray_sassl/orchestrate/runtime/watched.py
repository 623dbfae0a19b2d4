"""Ray's long calls (`trainer.fit`, `tuner.fit`) in a thread, so that the main thread shows progress and takes Ctrl-C meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable


def run_watched(work: Callable[[], object], look: Callable[[bool], None], *, every_s: float) -> Exception | None:
    """Do the work in a thread of its own; nothing waits for that thread after an exception here.

    Args:
        work: Ends by itself, or after `look` has asked it to.
        look: Called in this thread, at once and every so many seconds, with whether the work goes on; the last time with False.

    Returns:
        What the work ended by, where that was an error.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - returned, to the thread that can tell the user
            errors.append(error)

    thread = threading.Thread(target=run, name="watched", daemon=True)
    thread.start()
    while thread.is_alive():
        look(True)
        thread.join(every_s)
    look(False)
    return errors[0] if errors else None
