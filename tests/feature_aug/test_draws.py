import torch

from ray_sassl.feature_aug import draws

ROWS = torch.empty(6, 3)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_two_workers_take_the_draws_that_one_makes_and_leave_the_generator_in_the_same_state(monkeypatch):
    makes = [
        lambda rows, generator: draws.uniform(4, rows, generator, (3,)),
        lambda rows, generator: draws.normal(4, rows, generator, (3,)),
        lambda rows, generator: draws.beta(4, rows, generator, 0.5, 2.0),
        lambda rows, generator: draws.integers(2, 99, 4, rows, generator),
        lambda rows, generator: draws.some_of(torch.arange(5).expand(len(rows), 5), 3, generator),
    ]
    for make in makes:
        whole, generator = make(ROWS, one := _seeded()), None
        monkeypatch.setattr(draws, "world_size", lambda: 2)
        for rank in range(2):
            monkeypatch.setattr(draws, "rank", lambda rank=rank: rank)
            part = make(ROWS[:3], generator := _seeded())
            assert torch.equal(part, whole[:, 3 * rank : 3 * rank + 3])
            assert torch.equal(generator.get_state(), one.get_state())
        monkeypatch.undo()


def test_some_of_the_columns_are_different_ones_of_the_row_itself():
    columns = torch.arange(30).view(6, 5)
    chosen = draws.some_of(columns, 3, _seeded())
    assert chosen.shape == (3, 6)
    for row, of_row in zip(columns.tolist(), chosen.T.tolist(), strict=True):
        assert len(set(of_row)) == 3
        assert set(of_row) <= set(row)


def test_all_of_the_columns_are_all():
    columns = torch.arange(30).view(6, 5)
    assert torch.equal(draws.some_of(columns, 5, _seeded()).T.sort(dim=1).values, columns)


def test_beta_draws_follow_the_generator():
    first, again, other = (draws.beta(2, ROWS, torch.Generator().manual_seed(seed), 1.0, 1.0) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
