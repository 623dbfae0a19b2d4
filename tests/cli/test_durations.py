import pytest

from ray_sassl.cli.durations import seconds
from ray_sassl.process.errors import UsageError


def test_lengths_of_time_are_read_with_their_unit():
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h", "1d", " 3d ")] == [90, 90, 90, 7200, 86400, 3 * 86400]


@pytest.mark.parametrize("text", ["", "two", "5w", "0", "0h", "h", "-1h", "9" * 5000, "1e3", "1\u0661m"])
def test_what_is_not_a_length_of_time_is_refused(text: str):
    with pytest.raises(UsageError, match="is not a length of time"):
        seconds(text)


def test_a_unit_may_be_needed():
    assert seconds("24h", needs_unit=True) == 86400
    with pytest.raises(UsageError, match="is not a length of time"):
        seconds("24", needs_unit=True)
