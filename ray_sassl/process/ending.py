"""How work ends: by a signal, in order or at once; and what is done last, whatever the end was."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ray_sassl.process.errors import UsageError

log = logging.getLogger(__name__)

_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_S = 0.2
"""`timeout` and wrappers of commands send a signal twice, to the process and to its group; that is one notice."""


class Stopped(KeyboardInterrupt):
    """A signal has ended the work at once.

    Attributes:
        signal: Which one.
        at_s: When, on the clock of `time.monotonic`.
    """

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.signal, self.at_s = signal.Signals(number), time.monotonic()


@dataclass
class Notice:
    """Whether a stop was asked for.

    Attributes:
        signal: The name of the signal that asked for it, None where none has.
    """

    signal: str | None = None


def exit_code(name: str | None) -> int:
    """What a command that a signal has stopped exits with, as shells count: 130 for SIGINT, also where no name is known."""
    return 128 + (signal.Signals[name] if name else signal.SIGINT)


_has_ended: list[Stopped] = []
"""What `Stopped` was raised by, where it was: a signal that comes while that is handled ends the process."""


@contextmanager
def on_notice(stop: Callable[[], Any], *, grace_s: float, preempt_signal: str | None = None) -> Iterator[Notice]:
    """Within the block the first Ctrl-C, SIGTERM, SIGHUP or `preempt_signal` asks for a stop; a second one raises `Stopped`.

    Signals are handled in the main thread only; in another one none is touched. SIGHUP stays ignored under `nohup`, and `preempt_signal`
    belongs to whoever has a handler for it.

    Args:
        stop: Asks the work to stop; called in the handler, so it must be short.
        grace_s: `Stopped` is raised that long after the notice, since whoever gave it kills the process soon; Ctrl-C has no such limit.
        preempt_signal: A further signal, such as SIGUSR1.

    Raises:
        Stopped: the work is to end at once.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    _has_ended.clear()
    began, is_overdue = 0.0, threading.Event()

    def is_up(number: int) -> None:
        is_overdue.set()
        signal.pthread_kill(threading.main_thread().ident or 0, number)

    timers: list[threading.Timer] = []

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal began
        name = signal.Signals(number).name
        if notice.signal is None:
            notice.signal, began = name, time.monotonic()
            if number == signal.SIGINT:
                log.warning("Stopping at the next step, with a checkpoint. Press Ctrl-C again to stop at once.")
            else:
                log.warning("%s: stopping within %g s (fault.grace_s), with a checkpoint. A second signal stops at once.", name, grace_s)
                timers.append(threading.Timer(grace_s, is_up, [number]))
                timers[0].daemon = True
                timers[0].start()
            _survive_a_gone_terminal()
            stop()
        elif is_overdue.is_set():
            _end_at_once(number, f"by {notice.signal}: fault.grace_s={grace_s:g} s were not enough to stop in order")
        elif time.monotonic() - began > _SAME_S:
            _end_at_once(number, f"by a second signal ({name})")

    extra = [signal.Signals[preempt_signal]] if preempt_signal and _is_free(signal.Signals[preempt_signal]) else []
    with _handled_by(handle, [*_notices(), *extra]):
        try:
            yield notice
        finally:
            for timer in timers:
                timer.cancel()


def end_after(notice: Notice) -> None:
    """End the command by the signal of the notice, once its work is saved; without one nothing happens.

    Raises:
        Stopped: there was a signal.
    """
    if notice.signal is not None:
        _end_at_once(signal.Signals[notice.signal], f"by {notice.signal}")


@contextmanager
def exits_by_signal() -> Iterator[None]:
    """A command within the block ends by the first signal with the exit code that shells give to it, after all has been put in order.

    A signal that comes while that is done ends the process without it.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if not _has_ended:
            _survive_a_gone_terminal()
            _end_at_once(number, f"by {signal.Signals(number).name}")
        elif time.monotonic() - _has_ended[0].at_s > _SAME_S:
            os._exit(128 + number)

    _has_ended.clear()
    with _handled_by(handle, [*_notices(), signal.SIGUSR1]):
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as error:
            if _has_ended:  # whatever code the command line's parser has made of it
                raise SystemExit(128 + _has_ended[0].signal) from error
            raise


@contextmanager
def held_back() -> Iterator[None]:
    """Within the block a signal that would raise an exception waits for the block's end; a second one does not.

    The processes that are started within it ignore SIGHUP, SIGUSR1 and SIGUSR2: what a closed terminal or a batch system sends to all
    processes is for the command, which ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if waiting:
            before[number](number, frame)
        waiting.append(number)

    for number in _ENDS:
        if callable(handler := signal.getsignal(number)):
            before[number] = handler
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
    with _handled_by(handle, list(before)):
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, masked)
    for number in waiting[:1]:
        signal.raise_signal(number)


@contextmanager
def lastly(what: str, action: Callable[[], Any]) -> Iterator[None]:
    """Do the action after the block, whatever its end was. An error of the action never hides one of the block, to which it is added.

    Args:
        what: What the action does, such as "write the summary".

    Raises:
        UsageError: the action alone failed, as on a full disk.
    """
    try:
        yield
    except BaseException as error:
        after(error, what, action)
        raise
    try:
        action()
    except OSError as error:
        raise UsageError(f"could not {what}: {error}") from error


def after(error: BaseException, what: str, action: Callable[[], Any]) -> None:
    """Do the action where there is an error to tell of already; one of the action is added to that."""
    try:
        action()
    except Exception as second:  # noqa: BLE001 - told with the first one
        error.add_note(f"After that, could not {what}: {told(second)}")


def told(error: BaseException) -> str:
    """The error's message, with what was added to it."""
    return "\n".join([str(error) or repr(error), *getattr(error, "__notes__", ())])


def _notices() -> list[signal.Signals]:
    """The signals that ask for an end; under `nohup` SIGHUP does not."""
    return [number for number in _ENDS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]


def _is_free(number: signal.Signals) -> bool:
    handler = signal.getsignal(number)
    return handler == signal.SIG_DFL or getattr(handler, "__module__", None) == __name__


def _end_at_once(number: int, why: str) -> None:
    _has_ended.append(Stopped(number, why))
    raise _has_ended[-1]


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], numbers: list[Any]) -> Iterator[None]:
    """The handlers from before are there again after the block; in another thread than the main one nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in numbers if signal.getsignal(number) is not None]  # one of a library in C could not be put back
    before = {number: signal.signal(number, handler) for number in ours}
    try:
        yield
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _survive_a_gone_terminal() -> None:
    """From now on what is printed goes nowhere once nobody can read it: the terminal was closed, or Ctrl-C has ended a `tee` as well."""
    watched = select.poll()
    left = 0
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError, AttributeError):  # none, or not a file
            watched.register(stream.fileno(), 0)  # pyright: ignore[reportOptionalMemberAccess]
            left += 1

    def watch() -> None:
        nonlocal left
        while left:
            for descriptor, _ in watched.poll():
                watched.unregister(descriptor)
                left -= 1
                with suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)

    threading.Thread(target=watch, name="outputs", daemon=True).start()
