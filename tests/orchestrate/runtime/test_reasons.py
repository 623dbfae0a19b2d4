from __future__ import annotations

from ray_sassl.orchestrate.runtime.reasons import reason_of


def test_a_reason_is_the_last_line_of_an_error_without_our_names_for_it():
    trace = "Failure # 1\nTraceback\n  File x\nray_sassl.train.loop.DivergedError: the loss is nan at step 4\n"
    assert reason_of(trace) == "the loss is nan at step 4"
    assert reason_of("Traceback\nValueError: no") == "ValueError: no"
    died = "The actor is dead because its worker process has died. End of file. Some common causes include: (1) the process was killed"
    assert reason_of(died) == "The actor is dead because its worker process has died. End of file. Memory may have run out."
    assert reason_of(None) == "None"


def test_all_lines_of_an_error_of_ours_are_its_reason():
    trace = "Traceback\n  File x\nray_sassl.run.RunDirectoryError: 2 files have changed:\n  a.parquet\n  b.parquet\nRestore them.\n"
    assert reason_of(trace) == "2 files have changed: a.parquet b.parquet Restore them."
    assert reason_of(f"ray.exceptions.RayTaskError: first\nray_sassl.a.B: outer\n{trace}") == reason_of(trace)
