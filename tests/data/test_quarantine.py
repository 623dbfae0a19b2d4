from pathlib import Path

import pytest

from ray_sassl.data.quarantine import BadRow, Quarantine, TooManyBadRowsError


def _bad(sample_id: int, path: str = "a.tar") -> BadRow:
    return BadRow(path, sample_id, sample_id, "cut off")


def test_a_row_is_counted_once_however_often_it_is_met():
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
