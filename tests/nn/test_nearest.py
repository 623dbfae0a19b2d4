import pytest
import torch

from ray_sassl.nn import nearest
from ray_sassl.nn.nearest import nearest_rows


def _rows(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _slow(queries, rows, k, query_id=None, row_id=None) -> torch.Tensor:
    """All inner products, sorted, those of the own id put last."""
    found = []
    for i, query in enumerate(queries):
        own = {j for j in range(len(rows)) if query_id is not None and row_id is not None and query_id[i] == row_id[j]}
        order = sorted(range(len(rows)), key=lambda j, own=own, query=query: (j in own, -float((query * rows[j]).sum())))
        found.append(order[:k])
    return torch.tensor(found)


@pytest.mark.parametrize("k", [1, 4, 23])
@pytest.mark.parametrize("block", [1, 2, 7, 100])
def test_blocks_of_any_size_give_what_a_sort_of_all_gives(monkeypatch, k, block):
    queries, rows = _rows(5), _rows(23, seed=1)
    monkeypatch.setitem(nearest.MAX_SIMILARITIES, "cpu", 5 * block)
    assert torch.equal(nearest_rows(queries, rows, k), _slow(queries, rows, k))


@pytest.mark.parametrize("block", [1, 7, 100])
def test_rows_of_the_querys_own_id_are_left_out(monkeypatch, block):
    queries, rows = _rows(5), _rows(20, seed=1)
    query_id, row_id = torch.tensor([3, 1, 4, 1, 9]), torch.arange(20) % 5
    monkeypatch.setitem(nearest.MAX_SIMILARITIES, "cpu", 5 * block)
    found = nearest_rows(queries, rows, 6, query_id, row_id)
    assert torch.equal(found, _slow(queries, rows, 6, query_id, row_id))
    assert not (row_id[found] == query_id[:, None]).any()


def test_where_others_are_too_few_own_rows_come_last():
    rows = torch.eye(4)
    found = nearest_rows(rows[:1], rows, 4, torch.tensor([0]), torch.tensor([0, 1, 2, 0]))
    assert set(found[0, :2].tolist()) == {1, 2}
    assert set(found[0, 2:].tolist()) == {0, 3}


def test_every_row_is_nearest_to_itself():
    rows = torch.nn.functional.normalize(_rows(50), dim=1)
    assert torch.equal(nearest_rows(rows, rows, 1)[:, 0], torch.arange(50))


def test_no_gradient_is_kept():
    assert not nearest_rows(_rows(3).requires_grad_(), _rows(4), 1).requires_grad
