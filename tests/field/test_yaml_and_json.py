"""YAML and JSON from elsewhere: bombs, odd scalars, other encodings, torn and foreign lines."""

import contextlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_sassl.config.files import read_config
from ray_sassl.data.quarantine import BadRow, Quarantine
from ray_sassl.files.json_files import read_json, read_json_lines
from ray_sassl.files.safe_yaml import load_document, load_file
from ray_sassl.process.errors import UsageError

Make = Callable[[str], Path]


def test_merged_aliases_cannot_stand_for_a_billion_values(field: Make):
    with pytest.raises(UsageError, match="expands to more than"):
        read_config(str(field("yaml_merge_bomb") / "bomb.yaml"))
    assert load_document("a: &a {x: 1}\nb: {<<: *a, y: 2}", "it") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}}


def test_scalars_that_are_no_dates_or_numbers_and_other_encodings_are_an_error_with_the_file_in_it(field: Make):
    folder = field("yaml_odd_scalars")
    with pytest.raises(UsageError, match=r"date.yaml is not valid YAML"):
        read_config(str(folder / "date.yaml"))
    with pytest.raises(UsageError, match=r"latin1.yaml is not UTF-8 text: byte 9 is 0xe9"):
        read_config(str(folder / "latin1.yaml"))


@pytest.mark.parametrize(
    "text", ["0x_", "0b_", f"{'9' * 5000}", f"{'9' * 5000}:30", "2024-02-30 10:00:00", "1:99999999999999999999:0", "0o_"]
)
def test_an_odd_scalar_is_a_value_or_an_error_and_no_traceback(text: str):
    with contextlib.suppress(UsageError):
        load_document(f"seed: {text}", "config")


def test_a_file_that_is_far_too_large_is_not_read(field: Make):
    path = str(field("yaml_sparse") / "big.yaml")
    tracemalloc.start()
    try:
        for read in (read_config, load_file):
            with pytest.raises(UsageError, match=r"has 3,221,225,472 bytes; at most 1,048,576 are read"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_whole_lines_are_used_and_damaged_ones_counted(tmp_path: Path):
    lines = [
        b'{"step": 1}',
        b"3",
        b"\xff\xfe",
        b'{"step": 2',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"name": "a\u2028b\x85c"}'.encode(),
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    found = read_json_lines(str(tmp_path / "x.jsonl"))
    assert (found.objects, found.num_damaged) == ([{"step": 1}, {"name": "a\u2028b\x85c"}], 5)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_damaged_document_is_an_error_with_the_file_in_it(content: bytes, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"x.json is damaged"):
        read_json(str(tmp_path / "x.json"))


def test_a_quarantine_with_line_separators_and_any_other_name_is_read_again(tmp_path: Path):
    names = ["shot\u2028 1.jpg", "wait\x85.jpg", "caf\udce9.jpg", "new\nline.jpg"]
    one, two = Quarantine(100, 1.0), Quarantine(100, 1.0)
    one.add(BadRow(name, 0, number, "damaged") for number, name in enumerate(names))
    path = tmp_path / "quarantine.jsonl"
    one.save_jsonl(str(path))
    assert len(path.read_text().splitlines()) == 4
    assert two.load_jsonl(str(path)) == 4
    assert two.rows == one.rows


def test_a_foreign_or_torn_quarantine_is_read_as_far_as_it_goes(field: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "quarantine.jsonl"
    good = {"path": "a.tar", "row": 1, "sample_id": 1, "reason": "cut"}
    foreign = [{"path": "a"}, good | {"row": "one"}, good | {"more": 1}, good | {"sample_id": True}]
    torn = (field("foreign_run_directory") / "cut/quarantine.jsonl").read_text()
    path.write_text("".join(json.dumps(line) + "\n" for line in [*foreign, good]) + torn)
    quarantine = Quarantine(100, 1.0)
    assert quarantine.load_jsonl(str(path)) == 1
    assert "5 of 6 lines are damaged" in caplog.text
