"""Work that is started ahead."""

from ray_sassl.data.ahead import ahead


def test_results_come_in_order_with_only_so_many_started_ahead():
    started: list[int] = []

    def start(item: int) -> int:
        started.append(item)
        return 10 * item

    handed = ahead(start, range(6), 2)
    assert next(handed) == 0
    assert started == [0, 1, 2]
    assert list(handed) == [10, 20, 30, 40, 50]
    assert list(ahead(start, [], 2)) == []
