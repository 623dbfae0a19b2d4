"""Ray's long calls (`trainer.fit`, `tuner.fit`) in a thread, while the main thread shows progress and handles Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable


def run_watched(work: Callable[[], object], look: Callable[[bool], None], *, every_s: float) -> Exception | None:
    """Do the work in a new thread; after an exception here nothing waits for that thread.

    Args:
        work: Ends by itself, or after `look` has asked it to.
        look: Called in this thread, at once and every `every_s` seconds, with whether the work is running; the last time with False.

    Returns:
        The error that ended the work, or None.
    """
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - returned to the thread that can report it
            errors.append(error)

    thread = threading.Thread(target=run, name="watched", daemon=True)
    thread.start()
    while thread.is_alive():
        look(True)
        thread.join(every_s)
    look(False)
    return errors[0] if errors else None
