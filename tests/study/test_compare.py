"""Two studies side by side."""

from __future__ import annotations

from ray_sassl.study.compare import comparison, comparison_html
from ray_sassl.study.record import StudyRecord
from tests.study.test_record import make_study, make_trial


def _studies() -> list[StudyRecord]:
    first = [make_trial(number, [0.1, 0.2 + 0.01 * number]) for number in range(5)]
    second = [make_trial(0, [0.1, 0.5]), make_trial(1, [0.05], "stopped")]
    return [
        StudyRecord("a", make_study(), first),
        StudyRecord("b", make_study(scheduler="fifo"), second),
        StudyRecord("c", make_study(), []),
    ]


def test_every_row_has_a_word_for_each_study():
    rows = comparison(_studies())
    assert {len(row) for row in rows} == {4}
    table = {name: words for name, *words in rows}
    assert table["best"] == ["24.00%", "50.00%", "–"]
    assert table["best trial"] == ["4", "0", "–"]
    assert table["finished, stopped, failed"] == ["5, 0, 0", "1, 1, 0", "0, 0, 0"]
    assert table["epochs in all"] == ["10.0", "3.0", "0.0"]
    assert table["searcher, scheduler"] == ["optuna, asha", "optuna, fifo", "optuna, asha"]
    assert table["sassl.prob"] == ["0.4", "0.0", "–"]


def test_the_page_has_the_table_and_both_reports():
    page = comparison_html(_studies()[:2])
    assert page.count("<h2>Learning curves</h2>") == 2
    assert "<td>50.00%</td>" in page
