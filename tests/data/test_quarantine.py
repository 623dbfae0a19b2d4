import json
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from ray_sassl.data.quarantine import BadRow, Quarantine, QuarantineFile, TooManyBadRowsError, count_kinds
from ray_sassl.files import storage


def _bad(sample_id: int, path: str = "a.tar") -> BadRow:
    return BadRow(path, sample_id, sample_id, "cut off")


def test_a_row_is_counted_once_however_often_it_is_found():
    quarantine = Quarantine(num_rows=100, max_bad_fraction=0.05)
    assert quarantine.add([_bad(1), _bad(2), _bad(1)]) == 2
    assert quarantine.add([_bad(2)]) == 0
    assert quarantine.num_bad == 2


def test_whole_files_are_counted_file_by_file():
    quarantine = Quarantine(num_rows=100, max_bad_fraction=0.05)
    assert quarantine.add([BadRow("a.tar", -1, -1, "cut off"), BadRow("b.tar", -1, -1, "cut off")]) == 2


def test_exactly_the_allowed_share_passes_and_one_more_stops_the_run_with_the_files():
    quarantine = Quarantine(num_rows=100, max_bad_fraction=0.02)
    quarantine.add([_bad(1), _bad(2)])
    with pytest.raises(TooManyBadRowsError, match=r"3 of 100 rows \(3.00%\)(.|\n)*shard-7.tar row 7: cut off"):
        quarantine.add([_bad(7, "shard-7.tar")])


def test_the_message_names_twenty_files_and_counts_the_others():
    quarantine = Quarantine(num_rows=100, max_bad_fraction=0.0)
    with pytest.raises(TooManyBadRowsError, match=r"and 5 more files") as error:
        quarantine.add([_bad(i, f"{i}.jpg") for i in range(25)])
    assert str(error.value).count(".jpg") == 20


def test_saved_rows_are_loaded_again(tmp_path: Path):
    quarantine = Quarantine(num_rows=100, max_bad_fraction=1.0)
    quarantine.add([_bad(3, "ü.jpg"), _bad(1)])
    quarantine.save_jsonl(str(tmp_path / "q.jsonl"))
    other = Quarantine(num_rows=100, max_bad_fraction=1.0)
    assert other.load_jsonl(str(tmp_path / "q.jsonl")) == 2
    assert other.rows == quarantine.rows == [_bad(1), _bad(3, "ü.jpg")]
    assert other.load_jsonl(str(tmp_path / "none.jsonl")) == 0


def _cut(sample_ids: Iterable[int]) -> list[BadRow]:
    return [BadRow("a.tar", id_, id_, f"cut off: {id_}") for id_ in sample_ids]


def test_what_is_listed_is_capped_and_what_is_counted_is_not(tmp_path: Path):
    path = str(tmp_path / "q.jsonl")
    quarantine = Quarantine(num_rows=1000, max_bad_fraction=1.0, max_listed=3)
    assert quarantine.add([BadRow("b.tar", -1, -1, "no end"), *_cut(range(50)), BadRow("a.tar", 60, 60, "not an image: a BMP")]) == 52
    assert quarantine.add(_cut(range(52))) == 2
    quarantine.save_jsonl(path)
    other = Quarantine(num_rows=1000, max_bad_fraction=1.0, max_listed=3)
    assert other.load_jsonl(path) == 54
    assert other.add(_cut(range(52))) == 0
    for each in (quarantine, other):
        assert [row.sample_id for row in each.rows] == [-1, 0, 1]
        assert each.num_bad == 54
        assert each.sample_ids.tolist() == [*range(52), 60]
    assert count_kinds(path) == {"cut off": 52, "no end": 1, "not an image": 1}


def test_the_message_counts_rows_that_are_not_listed():
    quarantine = Quarantine(num_rows=100, max_bad_fraction=0.0, max_listed=2)
    with pytest.raises(TooManyBadRowsError, match=r"5 of 100 rows(.|\n)*and 3 more rows"):
        quarantine.add(_cut(range(5)))


def test_new_rows_are_appended_and_nothing_is_written_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "q.jsonl"
    written: list[int] = []
    append = storage.append_text
    monkeypatch.setattr(storage, "append_text", lambda path, text: (written.append(len(text)), append(path, text)))
    quarantine = Quarantine(num_rows=10_000, max_bad_fraction=1.0, max_listed=20)
    for first in range(0, 1000, 10):
        quarantine.add(_cut(range(first, first + 10)))
        quarantine.appending(str(path))()
        quarantine.appending(str(path))()
    assert len(written) == 100
    assert sum(written) == path.stat().st_size
    assert max(written[2:]) < 150, "ten ids and the kind of damage"
    other = Quarantine(num_rows=10_000, max_bad_fraction=1.0, max_listed=20)
    assert other.load_jsonl(str(path)) == 1000
    other.add(_cut([2000]))
    other.appending(str(path))()
    assert len(written) == 101
    assert written[-1] < 150


def test_lines_are_appended_after_one_that_a_crash_cut_off(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    first = Quarantine(num_rows=100, max_bad_fraction=1.0)
    first.add([_bad(1), _bad(2)])
    first.appending(str(path))()
    path.write_bytes(path.read_bytes()[:-5])
    second = Quarantine(num_rows=100, max_bad_fraction=1.0)
    assert second.load_jsonl(str(path)) == 1
    second.add([_bad(2), _bad(3)])
    second.appending(str(path))()
    third = Quarantine(num_rows=100, max_bad_fraction=1.0)
    assert third.load_jsonl(str(path)) == 3
    assert third.sample_ids.tolist() == [1, 2, 3]


def test_the_file_of_a_run_is_written_when_it_is_due_and_read_at_the_next_start(tmp_path: Path):
    path = tmp_path / "q.jsonl"
    file = QuarantineFile(str(path), 100, 0.05)
    file.load()
    file.add([_bad(1)])
    assert not path.exists()
    file._due_at = 0.0
    file.save_if_due()
    file.add([_bad(2)])
    file.save()
    assert len(path.read_text().splitlines()) == 2
    with pytest.raises(TooManyBadRowsError, match="2 of 100 rows"):
        QuarantineFile(str(path), 100, 0.01).load()


def test_a_slow_place_is_written_in_a_thread_and_an_error_of_it_comes_with_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, written, may_go_on = tmp_path / "q.jsonl", threading.Event(), threading.Event()

    def full(path: str, text: str) -> None:
        written.set()
        assert may_go_on.wait(60)
        raise OSError("full")

    append = storage.append_text
    monkeypatch.setattr(storage, "append_text", full)
    file = QuarantineFile(str(path), 100, 0.05)
    file._due_at = 0.0
    file.add([_bad(1)])
    assert written.wait(60), "the thread writes"
    file._due_at = 0.0
    file.add([_bad(2)])  # waits for nothing
    may_go_on.set()
    assert file._saving is not None
    file._saving.exception()
    file._due_at = 0.0
    with pytest.raises(OSError, match="full"):
        file.save_if_due()
    monkeypatch.setattr(storage, "append_text", append)
    file.save()
    assert [json.loads(line)["sample_id"] for line in path.read_text().splitlines()] == [1, 2], "all rows, once each"
