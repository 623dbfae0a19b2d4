from __future__ import annotations

import threading
import time

import pytest

from ray_sassl.orchestrate.runtime.watched import run_watched


def test_looks_while_the_work_goes_on_and_once_after_its_end():
    is_over, looks = threading.Event(), []

    def look(is_running: bool) -> None:
        looks.append(is_running)
        if len(looks) == 3:
            is_over.set()

    assert run_watched(is_over.wait, look, every_s=0.01) is None
    assert looks[:3] == [True] * 3
    assert looks[-1] is False
    assert looks.count(False) == 1


def test_an_error_of_the_work_comes_back_after_a_last_look():
    looks: list[bool] = []

    def work() -> None:
        raise ValueError("no such node")

    error = run_watched(work, looks.append, every_s=0.01)
    assert isinstance(error, ValueError)
    assert looks[-1] is False


def test_an_error_of_the_look_is_raised_without_waiting_for_the_work():
    never = threading.Event()

    def look(is_running: bool) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_watched(lambda: never.wait(30), look, every_s=0.01)
    assert time.monotonic() - began < 10
    never.set()
