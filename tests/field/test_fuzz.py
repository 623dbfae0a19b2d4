"""Damaged and hostile inputs: what comes of them is a result or an error of ours. `python -m benchmarks.fuzz` does the same for longer.

Targets that a library of C++ reads first are read there only, in processes of their own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.fuzz import read_here
from benchmarks.fuzz_inputs import Files, changed
from benchmarks.fuzz_targets import TARGETS, Target, write_case
from ray_sassl.files.json_files import parse_json
from ray_sassl.files.safe_yaml import load_document
from ray_sassl.process.errors import UsageError

EXAMPLES = {"config": 8, "search space": 8, "cluster definition": 8, "study directory": 5, "bytes": 30}
"""Of the slow ones; of the others `MANY`."""
MANY = 40
MOST_BYTES = 2 * 10**9
"""Of addresses that one input may take beside what the tests have: an input that asks for more is not bounded."""
IN_PROCESS = [target for target in TARGETS if not target.is_native]


@lru_cache(maxsize=len(TARGETS))
def _seeds(target: Target) -> list[Files]:
    return target.seeds()


@pytest.fixture
def bounded(tmp_path: Path) -> Iterator[Path]:
    """A folder, and little memory and a silent log meanwhile."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (size + MOST_BYTES, before[1]))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_AS, before)
    logging.disable(logging.NOTSET)


def _settings(name: str) -> settings:
    return settings(
        max_examples=EXAMPLES.get(name, MANY),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],  # pyright: ignore
    )


def _case(target: Target, number: int) -> Files:
    draw = random.Random(number)
    files = draw.choice(_seeds(target))
    for _ in range(draw.choice((1, 1, 1, 2))):
        files = changed(files, draw)
    return files


@pytest.mark.parametrize("target", IN_PROCESS, ids=lambda target: target.name)
def test_a_changed_input_is_read_or_refused(target: Target, bounded: Path):
    for files in _seeds(target):
        write_case(files, bounded)
        assert read_here(target, bounded).is_well, "as it is"

    @_settings(target.name)
    @given(st.integers(0, 2**32))
    def check(number: int) -> None:
        folder = bounded / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_case(_case(target, number), folder)
        outcome = read_here(target, folder)
        assert outcome.is_well, outcome.trace

    check()


@pytest.mark.slow
def test_a_changed_input_of_a_library_is_read_or_refused_in_a_process_of_its_own(tmp_path: Path):
    native = [word for target in TARGETS if target.is_native for word in ("--target", target.name)]
    files = ["--keep", str(tmp_path / "kept"), "--out", str(tmp_path / "fuzz.json")]
    words = [sys.executable, "-m", "benchmarks.fuzz", "--inputs", "21", *native, *files]
    done = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "fuzz.json").read_text())["inputs"]
    assert [sum(row["kinds"].values()) for row in rows] == [7, 7, 7]


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


@_settings("text")
@given(st.text(alphabet="{}[]:,&*<!|>-?#'\"\n ab01._~%@\t\x85\u2028é", max_size=60))
def test_any_text_is_yaml_or_refused(text: str):
    with contextlib.suppress(UsageError):
        load_document(text, "it")


@_settings("bytes")
@given(st.binary(max_size=60) | TREES.map(lambda tree: repr(tree).encode("utf-8", "replace")))
def test_any_bytes_are_json_or_refused(content: bytes):
    with contextlib.suppress(UsageError):
        parse_json(content, "it")
