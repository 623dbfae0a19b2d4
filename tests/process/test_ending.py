"""Signals end work in order, at once, or not at all; and no error hides another one. Each signal goes to a process of its own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_sassl.process.ending import exit_code, lastly, on_notice, told
from ray_sassl.process.errors import UsageError

ROOT = Path(__file__).parents[1]

_PRELUDE = """
import logging, os, signal, sys, threading, time
from ray_sassl.process.ending import Stopped, exits_by_signal, held_back, on_notice
logging.basicConfig(format="%(message)s")
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def send(*numbers):
    for number in numbers:
        os.kill(os.getpid(), number)
        time.sleep(0.4)
"""


def _ended(code: str, **options) -> tuple[int, str, str]:
    """Exit code, output and errors of a program."""
    ended = subprocess.run([sys.executable, "-c", _PRELUDE + code], capture_output=True, text=True, cwd=ROOT, check=False, **options)
    return ended.returncode, ended.stdout, ended.stderr


_WORK = """
stop = threading.Event()
with exits_by_signal():
    try:
        with on_notice(stop.set, grace_s={grace_s}, preempt_signal="SIGUSR1") as notice:
            send({signals})
            stop.wait(30)
            say("checkpoint", notice.signal)
            time.sleep({rest_s})
    finally:
        say("in order")
say("end", signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_the_first_signal_is_a_notice(name: str):
    code, out, err = _ended(_WORK.format(grace_s=30, signals=f"signal.{name}", rest_s=0))
    assert (code, out) == (0, f"checkpoint {name}\nin order\nend True\n"), err
    assert "checkpoint" in err


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_at_once_in_order_and_with_its_own_exit_code(second: str):
    code, out, err = _ended(_WORK.format(grace_s=30, signals=f"signal.SIGTERM, signal.{second}", rest_s=0))
    assert (code, out) == (exit_code(second), "in order\n"), err


def test_a_notice_ends_the_work_at_once_when_its_time_is_up():
    code, out, err = _ended(_WORK.format(grace_s=0.1, signals="signal.SIGTERM", rest_s=30))
    assert code == 143, err
    assert out.endswith("in order\n")
    assert "end True" not in out


def test_the_same_signal_sent_to_the_process_and_its_group_is_one_notice():
    twice = "signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM"
    code, out, err = _ended(_WORK.format(grace_s=30, signals=twice, rest_s=0).replace("send(", "os.kill(os.getpid(), "))
    assert (code, out) == (0, "checkpoint SIGTERM\nin order\nend True\n"), err


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_command_without_a_run_ends_by_the_first_signal_and_a_second_one_cuts_its_end_short(name: str):
    work = """
with exits_by_signal():
    try:
        send(signal.{name})
    except KeyboardInterrupt:
        say("in order")
        {then}
        sys.exit(130)
"""
    assert _ended(work.format(name=name, then=""))[:2] == (exit_code(name), "in order\n")
    assert _ended(work.format(name=name, then=f"time.sleep(0.4); send(signal.{name}); say('late')"))[:2] == (exit_code(name), "in order\n")


def test_under_nohup_a_closed_terminal_is_no_notice():
    work = _WORK.format(grace_s=30, signals="signal.SIGHUP", rest_s=0).replace("stop.wait(30)", "stop.set()")
    code, out, _ = _ended("signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + work)
    assert (code, out) == (0, "checkpoint None\nin order\nend True\n")


def test_a_signal_of_the_program_s_own_is_left_to_it():
    mine = "signal.signal(signal.SIGUSR1, lambda number, frame: (say('mine'), stop.set()))\n"
    work = _WORK.format(grace_s=30, signals="signal.SIGUSR1", rest_s=0).replace("with exits_by_signal():", f"{mine}if True:")
    code, out, _ = _ended(work)
    assert (code, out) == (0, "mine\ncheckpoint None\nin order\nend True\n")


def test_signals_wait_for_the_end_of_what_must_not_be_cut_in_two_and_its_processes_do_not_get_them():
    work = """
import subprocess
with exits_by_signal():
    with held_back():
        child = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGHUP); print('alive')"])
        child.wait()
        send(signal.{name})
        say("whole")
    say("not this")
"""
    for name in ("SIGTERM", "SIGHUP"):
        assert _ended(work.format(name=name))[:2] == (exit_code(name), "alive\nwhole\n")


def test_in_another_thread_signals_are_not_touched():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    during = []

    def run() -> None:
        with on_notice(lambda: None, grace_s=1, preempt_signal="SIGUSR1"):
            during.extend(signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == before


@pytest.mark.parametrize("kind", ["terminal", "pipe"])
def test_what_is_printed_after_a_hangup_to_nobody_does_not_end_the_work(kind: str, tmp_path: Path):
    reader, writer = pty.openpty() if kind == "terminal" else os.pipe()
    code = (
        _PRELUDE
        + """
stop = threading.Event()
with on_notice(stop.set, grace_s=30):
    say("ready")
    stop.wait()
while os.readlink("/proc/self/fd/1") != "/dev/null":
    time.sleep(0.01)
for _ in range(100):
    print("a line that nobody reads", flush=True)
open(sys.argv[1], "w").write("checkpoint")
"""
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=writer, cwd=ROOT, start_new_session=True)
    os.close(writer)
    assert b"ready" in os.read(reader, 100)
    os.close(reader)
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 0
    assert (tmp_path / "out").read_text() == "checkpoint"


def _fail() -> None:
    raise OSError("no space left on device")


def test_what_fails_last_is_told_with_what_failed_first():
    with pytest.raises(ValueError, match="the loss is nan") as caught, lastly("write the summary", _fail):
        raise ValueError("the loss is nan")
    assert told(caught.value) == "the loss is nan\nAfter that, could not write the summary: no space left on device"


def test_what_fails_last_is_an_error_of_its_own_where_nothing_failed_before():
    with pytest.raises(UsageError, match="could not write the summary: no space left"), lastly("write the summary", _fail):
        pass
